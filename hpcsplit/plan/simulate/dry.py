"""What a rank's program is run with in a simulation: blocks, rows and images that take time and compute nothing.

A sample here stands for a whole mini-batch, or for a micro-batch where a step has several, so that shapes of rows and
messages are the real ones and only their number is not.  A stage's passes take what the profile says of its blocks;
what the cuts beside it cost it, t_ψ at its output, t_λ and t_κ at its input, is charged once a step, behind the first
backward pass.  The step of a full-batch method computes with the weights of layers, which a simulation could not hold:
its tensors have no values ("meta").
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hpcsplit.engine.job import Job
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import TrainingMethod, own_variables
from hpcsplit.plan.profile import Profile
from hpcsplit.plan.simulate.machine import Clock, Link, Machine
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.learning_rate import LearningRate
from hpcsplit.stage.cuts import ranges
from hpcsplit.stage.stage import Shape, Stage
from hpcsplit.store.generation import Visits
from hpcsplit.store.hdf5 import AHEAD, BEHIND
from hpcsplit.store.store import Field, MemoryStore, Store


@dataclass(frozen=True)
class Problem:
    """What is trained: `shapes` are one sample's at the input of each block and at the output of the last one."""

    method: TrainingMethod
    exact: Backprop
    shapes: Sequence[Shape]
    profile: Profile
    batch_size: int
    dtype: torch.dtype = torch.float32
    aux_dtype: torch.dtype = torch.float32

    @property
    def microbatches(self) -> int:
        return self.profile.microbatches

    @property
    def device(self) -> torch.device:
        """Of all tensors here."""
        return torch.device("meta" if self.method.facts.full_batch else "cpu")

    def samples(self, phase: Phase) -> int:
        """Of a mini-batch here."""
        return self.microbatches if phase == "serial" else self.method.microbatches

    def samples_of_one(self, phase: Phase) -> float:
        """How many samples one here stands for."""
        return self.batch_size / self.samples(phase)

    def deeper(self, times: int) -> Problem:
        """The same with every block but the first and the last so many times in a row."""
        inner = (shape for shape in self.shapes[2:-1] for _ in range(times))
        shapes = (*self.shapes[:2], *inner, self.shapes[-1])
        return replace(self, shapes=shapes, profile=self.profile.deeper(times))


def make_jobs(
    problem: Problem, cuts: Sequence[int], clocks: Sequence[Clock], machine: Machine, phase: Phase, steps: int
) -> list[Job]:
    """A job for each rank, of `steps` mini-batches an epoch, all of one kind."""
    parts, size = ranges(cuts, len(problem.profile.blocks)), steps * problem.samples(phase)
    disks = [Link(machine.disk) for _ in range(-(-len(parts) // machine.node))]
    jobs = []
    for k, part in enumerate(parts):
        stage = DryStage(problem, k, len(parts), part, clocks[k], phase)
        own = own_variables(problem.method, stage.place) if phase == "parallel" else []
        fields = [Field(v.name, v.row_shape(stage.place), v.before_block(stage.place)) for v in own]
        jobs.append(
            Job.bare(
                stage,
                problem.method,
                problem.exact,
                DryImages(problem, clocks[k], phase),
                store=DryStore(problem, fields, size, clocks[k], disks[k // machine.node]) if fields else None,
                aux_dtype=problem.aux_dtype,
                train_size=size,
                batch_size=problem.samples(phase),
                plan=(phase,),
                learning_rate=LearningRate(0.1, "constant", (phase,)),
            )
        )
    return jobs


class DryStage(Stage):
    """A stage whose blocks are one that takes as long; a full-batch method finds each of them, a layer."""

    def __init__(self, problem: Problem, index: int, count: int, part: range, clock: Clock, phase: Phase) -> None:
        profile = problem.profile
        pieces = [range(i, i + 1) for i in part] if problem.method.facts.full_batch else [part]
        blocks = [DryBlock(problem, piece, clock, phase, self, count) for piece in pieces]
        update_s = profile.update_s * sum(profile.params[i] for i in part)
        super().__init__(
            index,
            count,
            nn.Sequential(*blocks),
            [problem.shapes[part.start], *(block.shape for block in blocks)],
            lambda weights: DryUpdate(weights, clock, update_s),
            device=problem.device,
            dtype=problem.dtype,
            first_block=part.start,
            net_blocks=len(profile.blocks),
        )
        before, behind = profile.join(part.start), profile.join(part.stop)
        self._clock, self._charged = clock, False
        self._cuts_s = before.lam_s + before.kappa_s + behind.psi_s if phase == "parallel" else 0.0

    def at(self, epoch: int, step: int) -> None:
        super().at(epoch, step)
        self._charged = False

    def forward(self, x: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Whatever the weights are, and without autocast, which knows no "meta"."""
        self.passes += 1
        y: torch.Tensor = self.blocks(x)
        return y.to(self.wide if self.last else self.dtype)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Something to go back from, whatever the task."""
        return outputs.flatten(1).sum(1)

    def _seed_block(self, number: int) -> None:
        """Nothing here draws random numbers."""

    def charge(self) -> None:
        """For the cuts, behind the first backward pass of a step."""
        if not self._charged:
            self._charged = True
            self._clock.work("variables", self._cuts_s)


class DryBlock(nn.Module):
    """Zeros of the right shape, after the right time."""

    def __init__(self, problem: Problem, part: range, clock: Clock, phase: Phase, stage: DryStage, stages: int) -> None:
        super().__init__()
        profile, device = problem.profile, problem.device
        times, of = (
            (profile.parallel, problem.samples(phase)) if phase == "parallel" else (profile.exact_pieces(stages), 1)
        )
        self.forward_s, self.backward_s, self.weights_s = (
            sum(getattr(times[i], name) for i in part) / of for name in ("forward_s", "backward_s", "weights_s")
        )
        self.clock, self.shape, self.stage = clock, problem.shapes[part.stop], stage
        self.weight = nn.Parameter(torch.zeros((), device=device))
        if problem.method.facts.full_batch:
            self.layer = nn.Linear(math.prod(problem.shapes[part.start]), math.prod(self.shape), device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed: torch.Tensor = _Pass.apply(x, self.weight, self)
        return passed


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, block: DryBlock) -> torch.Tensor:
        block.clock.work("forward", len(x) * block.forward_s)
        ctx.block, ctx.zero, ctx.shape, ctx.halved = block, x.new_zeros(()), x.shape, block.stage.deferred.on
        return x.new_zeros(()).expand(len(x), *block.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, None]:
        block = ctx.block
        whole, weights = (ctx.shape[0] * seconds for seconds in (block.backward_s, block.weights_s))
        block.clock.work("backward", whole - weights)
        late = partial(block.clock.work, "weights", weights)
        block.stage.deferred.put(late) if ctx.halved else late()
        block.stage.charge()
        x = ctx.zero.expand(ctx.shape) if ctx.needs_input_grad[0] else None
        return x, torch.zeros_like(block.weight), None


class Unknown(TorchFunctionMode):
    """What is asked of tensors without values: numbers are 0 and truths true, so that a search ends at once."""

    ASKED = tuple(getattr(torch.Tensor, name) for name in ("__bool__", "__float__", "__int__", "item", "tolist"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.ASKED and args[0].is_meta:
            args = (torch.full(args[0].shape, args[0].dtype == torch.bool, dtype=args[0].dtype),)
        if func is torch.Tensor.copy_ and args[1].is_meta and not args[0].is_meta:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


class DryUpdate(torch.optim.SGD):
    """Takes the time of the optimizer's step and changes nothing."""

    def __init__(self, weights: Sequence[nn.Parameter], clock: Clock, seconds: float) -> None:
        super().__init__(weights, lr=0.1)
        self._clock, self._seconds = clock, seconds

    def step(self, closure: Any = None) -> Any:
        self._clock.work("update", self._seconds)


class DryImages:
    """Images that only take time."""

    def __init__(self, problem: Problem, clock: Clock, phase: Phase) -> None:
        self._shape, self._clock, self._device = problem.shapes[0], clock, problem.device
        self._seconds = problem.profile.data_s / problem.samples(phase)

    def images(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> torch.Tensor:
        self._clock.work("data", len(ids) * self._seconds)
        return torch.zeros(len(ids), *self._shape, device=self._device)

    def labels(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> torch.Tensor:
        return torch.zeros(len(ids), dtype=torch.int64, device=self._device)


class DryStore(MemoryStore):
    """Rows that are zeros; they come from and go to a disk behind the computation, as those of the files do."""

    def __init__(self, problem: Problem, fields: Sequence[Field], rows: int, clock: Clock, disk: Link) -> None:
        Store.__init__(self, fields, rows, problem.aux_dtype)
        self.epoch = 0  # something is stored
        self._clock, self._disk, self._device = clock, disk, problem.device
        row = sum(math.prod(field.shape) for field in fields) * problem.aux_dtype.itemsize
        self._row_bytes = row * problem.samples_of_one("parallel")
        self._there: dict[int, float] = {}
        self._next_read = 0
        self._under_way: deque[float] = deque()

    def _begin(self, visits: Visits) -> None:
        self._there, self._next_read = {}, visits.last_read + 1
        if visits.reads:
            self._ask(visits, visits.last_read + AHEAD)

    def _ask(self, visits: Visits, last: int) -> None:
        for step in range(self._next_read, min(last, len(visits.batches) - 1) + 1):
            self._there[step] = self._disk.done(self._clock.now, len(visits.batches[step]) * self._row_bytes)
            self._next_read = step + 1

    def _fetch(self, visits: Visits, step: int) -> dict[str, torch.Tensor]:
        self._ask(visits, step + AHEAD)
        self._clock.wait(self._there.pop(step), "store")
        count = len(visits.batches[step])
        zero = torch.zeros((), device=self._device)
        return {name: zero.expand(count, *self.fields[name].shape) for name in self._stored()}

    def _put(self, visits: Visits, step: int, values: Mapping[str, torch.Tensor], arrive: Any) -> None:
        size = len(visits.batches[step]) * self._row_bytes
        self._under_way.append(self._disk.done(self._clock.now, size))
        while len(self._under_way) > BEHIND:
            self._clock.wait(self._under_way.popleft(), "store")

    def _commit(self, visits: Visits) -> None:
        while self._under_way:
            self._clock.wait(self._under_way.popleft(), "store")
