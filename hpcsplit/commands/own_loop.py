"""`hpcsplit.split`: the stages of a network for a training loop of one's own, with any method of mini-batches.

A step is what engine/epochs.py does for one mini-batch: the neighbours' copies of the variables, the method's step, the
new rows.  Variables are kept in memory, and those of a sample begin when it is first seen.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcsplit.config.declared import declared_methods
from hpcsplit.engine.epochs import receive_copies, send_copies
from hpcsplit.engine.forward import first_rows, forward_pass, pass_back
from hpcsplit.engine.job import Job
from hpcsplit.errors import ConfigError
from hpcsplit.host.factory import given
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import InFlight, TrainingMethod, sweeps, visits
from hpcsplit.nets.catalog import build
from hpcsplit.plan.blocks import block_costs
from hpcsplit.plan.setting import made
from hpcsplit.schedule.actions import Phase
from hpcsplit.stage.cuts import balanced_cuts, ranges
from hpcsplit.stage.stage import Stage
from hpcsplit.tasks.task import Classification, Samples
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Program, Verb, World

Optimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
Loss = Callable[[Tensor, Tensor], Tensor]


def split(
    net: nn.Sequential,
    sample_shape: Sequence[int],
    *,
    method: str = "delayed",
    cuts: Sequence[int] | str = "params",
    stages: int = 0,
    comm: Any = None,
    optimizer: Optimizer | None = None,
    loss: Loss | None = None,
    samples: int = 0,
    microbatches: int = 1,
    clip: float = 0.0,
    device: torch.device | str = "cpu",
    seed: int = 0,
    **options: Any,
) -> Split:
    """Cut a network into stages that are trained by `step`: all of them in this process, or one on each rank of `comm`.

    >>> net = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
    >>> stages = split(net, (4,), method="delayed", cuts=[1], optimizer=partial(torch.optim.SGD, lr=0.1))
    >>> for _ in range(3):
    ...     value = stages.step(torch.randn(16, 4), torch.randint(0, 3, (16,)))
    >>> stages.finish()
    >>> stages.infer(torch.randn(5, 4)).shape
    torch.Size([5, 3])

    Args:
        net: the whole network, the same on every rank; its blocks are trained in place.
        sample_shape: of one sample, without the batch dimension.
        method: a training method's name, as in [method]; "backprop" is exact.  `options` are those of the method, such
            as beta=0.1.  A method that iterates over all samples together (pdadmm, dladmm) has no step.
        cuts: the first block of each stage but the first, or "params" or "flops" to balance them.
        stages: how many, in one process; 0: as many as `cuts` makes, or 2.
        comm: an mpi4py communicator with a rank for each stage, such as MPI.COMM_WORLD; None: this process alone.
        optimizer: makes the optimizer of a stage from its parameters; default: SGD with lr = 0.1.
        loss: (outputs (B, ...), targets (B, ...)) to the loss of each sample (B,); default: cross-entropy of logits.
        samples: of the training set, where the method keeps variables for each; their ids are 0 .. samples - 1.
        microbatches: of an exact step, in flight at once.
        clip: the largest gradient norm of a stage; 0 does not clip.

    Raises:
        ConfigError: the network cannot be cut so, or the method is none, has no step, or no such option.
    """
    with given("given:net", lambda input_shape, classes: net) as name:
        net = build(name, tuple(sample_shape), 0)  # refuses what cannot be cut
    costs = block_costs(net, sample_shape)
    world: World
    if comm is not None and comm.size > 1:
        from hpcsplit.wire.mpi import Wire

        world = Wire(among=comm)
    else:
        world = lockstep.Alone(stages or (2 if isinstance(cuts, str) else len(cuts) + 1))
    if isinstance(cuts, str):
        if cuts not in ("params", "flops"):
            raise ConfigError(f'cuts = "{cuts}" is no balance; take "params" or "flops", or the blocks themselves')
        cuts = balanced_cuts([float(block.params if cuts == "params" else block.flops) for block in costs], world.count)
    parts = ranges(tuple(cuts), len(net))
    if len(parts) != world.count:
        raise ConfigError(f"cuts = {list(cuts)} makes {len(parts)} stages, there are {world.count}; change one of them")
    exact = Backprop(microbatches, deferred=world.size > 1)
    chosen = _method(method, options) or exact
    shapes = [tuple(sample_shape), *(block.out_shape for block in costs)]

    def stage(index: int) -> Stage:
        part = parts[index]
        return Stage(
            index,
            world.count,
            net[part.start : part.stop],
            shapes[part.start : part.stop + 1],
            optimizer or partial(torch.optim.SGD, lr=0.1),
            clip=clip,
            device=device,
            seed=seed,
            first_block=part.start,
            net_blocks=len(net),
            task=Classification(given=_each(loss) if loss else None),
            between_blocks=world.progress,
        )

    world.device, own = torch.device(device), [stage(index) for index in world.stages]
    if world.size > 1:
        world.idle = own[0].deferred.one
    return Split(world, own, chosen, exact, tuple(cuts), samples)


def _method(name: str, options: Mapping[str, Any]) -> TrainingMethod | None:
    """The method with its options; None where all its steps are exact."""
    declared = declared_methods().get(name)
    if declared is None:
        raise ConfigError(f'method = "{name}" is not one of {", ".join(declared_methods())}')
    if declared.full_batch:
        raise ConfigError(f'method = "{name}" iterates over all samples, so it has no step; take hpcsplit.train')
    known = {option.name: option for option in declared.options}
    if unknown := [key for key in options if key not in known]:
        raise ConfigError(f"{name} has no option {unknown[0]}; it has {', '.join(known) or 'none'}")
    if not declared.parallel:
        return None
    return made(declared, {key: known[key].accept(value, f"method.{key}") for key, value in options.items()})


def _each(loss: Loss) -> Loss:
    """The loss, which must be that of each sample."""

    def checked(outputs: Tensor, targets: Tensor) -> Tensor:
        values = loss(outputs, targets)
        if values.shape != outputs.shape[:1]:
            raise ConfigError(
                f"loss returned shape {tuple(values.shape)} for {len(outputs)} samples; return one number for each, as "
                'with reduction="none"'
            )
        return values

    return checked


class Split:
    """The stages of this process, made by `split`.

    Attributes:
        stages: all of them, or this rank's one.
        cuts: the first block of each stage but the first.
        epoch, steps: how many epochs have been finished, and the steps since.
    """

    def __init__(
        self,
        world: World,
        stages: Sequence[Stage],
        method: TrainingMethod,
        exact: Backprop,
        cuts: tuple[int, ...],
        samples: int,
    ) -> None:
        self.stages, self.cuts, self.epoch, self.steps = list(stages), cuts, 0, 0
        self._world, self._method, self._exact = world, method, exact
        self._now = _Now()
        self._jobs = [Job.bare(stage, method, exact, self._now, train_size=samples) for stage in stages]
        self._rows: list[dict[str, Tensor]] = [{} for _ in stages]
        keeps = any(job.has_variables for job in self._jobs)
        if keeps and samples < 1:
            raise ConfigError("this method keeps variables for each sample; say of how many: samples=N")
        self._begun = np.zeros(samples if keeps else 0, bool)
        self._exact_before = True

    @property
    def first(self) -> bool:
        """Whether this process needs the inputs x."""
        return self.stages[0].first

    @property
    def last(self) -> bool:
        """Whether it needs the targets y."""
        return self.stages[-1].last

    def step(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        ids: Any = None,
        size: int = 0,
        exact: bool = False,
    ) -> float | None:
        """Train on one mini-batch; the mean loss of its samples as the last stage sees it, None on other ranks.

        Every rank calls it for the same mini-batches in the same order.

        Args:
            x: (B, *sample_shape), on the rank of the first stage; on all where the method computes with it there.
            y: (B,) labels, or what the loss takes, on the rank of the last stage.
            ids: (B,) numbers of the samples, on every rank, where the method keeps variables for each.
            size: B, on a rank that is given neither x nor y nor ids.
            exact: take an exact step of back-propagation in place of the method's.

        Raises:
            ConfigError: something of that is missing.
        """
        ids = self._take(x, y, ids, size)
        if not exact and len(self._begun) and not self._begun[ids].all():
            self._run(partial(self._begin, ids=ids, only=~self._begun[ids]))
            self._begun[ids] = True
        if exact and not self._exact_before:
            self._drain()
        self._exact_before = exact or self._method is self._exact
        phase: Phase = "serial" if self._exact_before else "parallel"
        sums = self._run(partial(self._step, ids=ids, phase=phase))
        self.steps += 1
        return sums[-1] / len(ids) if self.last else None

    def begin(self, x: Tensor | None = None, y: Tensor | None = None, *, ids: Any) -> None:
        """Start the variables of these samples anew from the weights as they are, as at each switch to a method.

        Without it those of a sample begin in the first step that has it.  Arguments as of `step`; y is needed where
        the method begins with a gradient.
        """
        numbers = self._take(x, y, ids, 0)
        if not len(self._begun):
            return
        self._run(partial(self._begin, ids=numbers, only=np.ones(len(numbers), bool)))
        self._begun[numbers] = True

    def infer(self, x: Tensor | None = None, *, size: int = 0) -> Tensor | None:
        """The outputs (B, ...) of the whole network in evaluation mode, without gradients; None on ranks but the last.
        `x` is needed on the first one, `size` = B on those without."""
        ids, outputs = self._take(x, None, None, size, targets=False), list[Tensor]()

        def program(place: int) -> Program:
            job = self._jobs[place]
            job.stage.blocks.eval()
            passed = list[Tensor]()
            yield from forward_pass(job, [ids], lambda step, ids, x, y: passed.append(y), source=self._now)
            job.stage.blocks.train()
            if job.stage.last:
                outputs.extend(passed)

        self._run(program)
        return outputs[-1] if self.last else None

    def finish(self) -> None:
        """The end of an epoch, or of training: what is in flight between the stages comes to its end."""
        if not self._exact_before:
            self._drain()
        self._exact_before, self.epoch, self.steps = True, self.epoch + 1, 0

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next steps."""
        for stage in self.stages:
            stage.set_lr(lr)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers of the stages of this process, by their names in the whole network."""
        return {name: t for stage in self.stages for name, t in stage.state().items()}

    # ------------------------------------------------------------------------------------------------ programs

    def _run(self, program: Callable[[int], Program]) -> list[Any]:
        """A program for each stage here, from its place among them."""
        return self._world.run([program(place) for place in range(len(self.stages))])

    def _step(self, place: int, ids: np.ndarray, phase: Phase) -> Generator[Verb, Any, float]:
        """The sum of the losses of the last stage's last visit."""
        job, rows, value = self._jobs[place], self._rows[place], 0.0
        stage, method = job.stage, self._exact if phase == "serial" else self._method.at(self.epoch)
        stage.defers = self._exact.defers(stage.count)
        for step in [step for _ in visits(method, [ids]) for step in sweeps(method)]:
            stage.at(self.epoch, self.steps)
            own = {name: table[ids] for name, table in rows.items()} if phase == "parallel" else {}
            copies: dict[str, Tensor] = {}
            if own or (phase == "parallel" and job.has_variables):
                yield from send_copies(job, own, self.steps)
                copies = yield from receive_copies(job, len(ids), self.steps)
            result = yield from step(stage, own | copies, job.batch(ids, phase=phase))
            for name, values in result.aux.items():
                rows[name][ids] = values.float()
            value = float(result.tally.numbers()().terms.get("phi", value))
        if isinstance(method, InFlight) and self._world.size == 1:
            yield from method.settle(stage)  # the stages take turns, so nothing may be left on its way
        return value

    def _begin(self, place: int, ids: np.ndarray, only: np.ndarray) -> Program:
        """The first rows of the samples at these places of a mini-batch."""
        job, rows = self._jobs[place], self._rows[place]
        own = {v.name: v for v in job.own_variables()}
        for name, v in own.items():
            if name not in rows:
                rows[name] = torch.zeros(len(self._begun), *v.row_shape(job.stage.place), device=job.stage.device)

        def keep(step: int, some: np.ndarray, x: Tensor, y: Tensor, g: Tensor) -> None:
            for name, values in first_rows(job, x, y, g).items():
                rows[name][ids[only]] = values.float()[torch.from_numpy(only)]

        for name, v in own.items():
            if v.start == "zero":
                rows[name][ids[only]] = 0.0
        back = job.method.starts_with_adjoint
        job.stage.blocks.train(back)
        job.stage.at(self.epoch, self.steps)
        if back:
            yield from pass_back(job, [ids], keep)
        else:
            visit = lambda step, some, x, y: keep(step, some, x, y, torch.empty(0))  # noqa: E731
            yield from forward_pass(job, [ids], visit, source=self._now)
        job.stage.blocks.train()

    def _drain(self) -> None:
        method = self._method
        if isinstance(method, InFlight):
            self._run(lambda place: method.drain(self.stages[place], goes_on=False))

    def _take(self, x: Tensor | None, y: Tensor | None, ids: Any, size: int, targets: bool = True) -> np.ndarray:
        """Check what a call has been given and lay it out for the stages; the numbers of its samples."""
        if x is None and (self.first or self._method.facts.images):
            raise ConfigError("x is missing: the rank of the first stage is given the inputs (B, *sample_shape)")
        if y is None and self.last and targets:
            raise ConfigError("y is missing: the rank of the last stage is given the targets (B, ...)")
        if ids is None and len(self._begun) and targets:
            raise ConfigError("ids are missing: this method keeps variables for each sample; give their numbers (B,)")
        sizes = {len(each) for each in (x, y, ids) if each is not None} | ({size} if size else set())
        if len(sizes) != 1 or 0 in sizes:
            what = "a stage between others cannot see how many samples there are: give size=" if not sizes else ""
            raise ConfigError(what or f"x, y, ids and size speak of {sorted(sizes)} samples; give as many of each")
        numbers = np.arange(sizes.pop()) if ids is None else np.asarray(ids, dtype=np.int64)
        if len(self._begun) and ids is not None:
            if numbers.min() < 0 or numbers.max() >= len(self._begun):
                raise ConfigError(
                    f"ids go from {numbers.min()} to {numbers.max()}, there are samples={len(self._begun)}"
                )
            if len(np.unique(numbers)) < len(numbers):
                raise ConfigError("ids name a sample twice; a mini-batch has each of them once")
        device = self.stages[0].device
        self._now.x = torch.empty(0) if x is None else x.detach().to(device)
        self._now.y = torch.empty(0) if y is None else y.detach().to(device)
        return numbers


class _Now(Samples):
    """The samples of the mini-batch at hand, whatever their numbers."""

    x = torch.empty(0)
    y = torch.empty(0)

    def images(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> Tensor:
        return self.x

    def labels(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> Tensor:
        return self.y
