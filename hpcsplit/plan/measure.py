"""Times on this device: the parts of a training step each for itself, what a cut costs, and whole steps on one rank.

Nothing that a run goes on with is trained.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcsplit.engine.job import Job
from hpcsplit.host.device import upload, wait_for
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import Batch, InFlight, Step, Talk, TrainingMethod, own_variables, sweeps
from hpcsplit.nets.shapes import twin
from hpcsplit.plan.blocks import BlockTime, block_times
from hpcsplit.plan.profile import CutCost, Profile
from hpcsplit.plan.setting import Setting
from hpcsplit.stage.stage import Shape, Stage
from hpcsplit.store.store import Field, MemoryStore
from hpcsplit.terms.resample import cells
from hpcsplit.wire.message import body
from hpcsplit.wire.port import PREV, Recv, Send, Verb

ROUNDS, FEW_ROUNDS = 9, 3
REPEATS, CUT_REPEATS = 5, 3
WARM_UP_STEPS = 3  # of whole steps: the first ones ask for memory that later ones have
REHEARSAL_S = 1.0  # long enough that ranks that do not begin together mostly compute together
_ENOUGH = 1_000_000  # numbers in what is timed to know what one of them takes


def profile(setting: Setting, device: torch.device, *, cuts: bool = True, repeats: int = ROUNDS) -> Profile:
    """The profile of this configuration's network, mini-batch, method and optimizer.

    Args:
        device: where the run computes.
        cuts: with what cuts would cost.
        repeats: rounds of the blocks.
    """
    size, pieces, own = setting.timed_batch, setting.config.schedule.microbatches, setting.method.microbatches
    piece, of_own = max(1, size // pieces), max(1, size // own)
    sizes, deferred = sorted({size, piece, of_own}), [piece] if cuts and setting.exact.deferred else []
    found = block_times(
        setting.net,
        setting.blocks,
        sizes,
        dtype=setting.input_dtype,
        deferred=deferred,
        repeats=repeats,
        channels_last=setting.config.run.channels_last,
        autocast_dtype=setting.precision if setting.precision != torch.float32 else None,
        device=device,
    )
    times = dict(zip(sizes, found, strict=False))
    return Profile(
        blocks=tuple(times[size]),
        pieces=tuple(times[piece]),
        late=tuple(found[-1]) if deferred else (),
        cut=tuple(BlockTime(own * t.forward_s, own * t.backward_s) for t in times[of_own]) if own > 1 else (),
        own=own,
        microbatches=pieces,
        cut_costs=time_cuts(setting, setting.shapes[:-1], device) if cuts else (),
        params=tuple(block.params for block in setting.blocks),
        update_s=_update_seconds(setting, device),
        data_s=_data_seconds(setting, size, device),
        packing_s=_packing_seconds(device),
    )


def rehearse(stage: Stage, size: int, dtype: torch.dtype = torch.float32) -> float | None:
    """Seconds of this stage's blocks for `size` samples, of type `dtype` where it is the first one, forward and
    backward: for all ranks at once, who then take memory, caches and power from each other.  Weights, statistics and
    gradients stay as they were.

    None where so many samples do not fit, as with a stage that takes them in micro-batches only.
    """
    times: list[float] = []
    try:
        x = torch.randn(size, *stage.in_shape, generator=torch.Generator().manual_seed(0))
        whole = stage.first and not dtype.is_floating_point
        x = (torch.zeros_like(x, dtype=dtype) if whole else x).to(stage.device, dtype if whole else stage.dtype)
        x.requires_grad_(not stage.first)
        stage.blocks.train()
        with stage.statistics_kept():
            while len(times) < 1 + REPEATS or sum(times) < REHEARSAL_S:
                began = time.perf_counter()
                y = stage.forward(x)
                if y.requires_grad:
                    y.backward(torch.ones_like(y))
                wait_for(stage.device)
                times.append(time.perf_counter() - began)
                stage.zero_grad()
                x.grad = None
    except torch.OutOfMemoryError:
        return None
    finally:
        stage.zero_grad()
    return statistics.median(times[1:])


def enough_steps(seconds: Sequence[float | None]) -> int:
    """How many exact steps to rehearse, the same on every rank, where the stages' blocks take so long (`rehearse`)."""
    return min(max(round(REHEARSAL_S / sum(s or REHEARSAL_S for s in seconds)), 2), 20)


def rehearse_exact(job: Job, steps: int) -> Generator[Verb, Any, float]:
    """Seconds of an exact step of all stages together, their messages included, the optimizer's step apart: the median
    of so many after the first.  Weights, statistics and gradients stay as they were."""
    stage, ids, times = job.stage, job.measured()[0], []
    optimizer, stage.optimizer = stage.optimizer, None
    stage.blocks.train()
    with stage.statistics_kept():
        for _ in range(1 + steps):
            began = time.perf_counter()
            yield from job.exact.step(stage, {}, job.batch(ids, augment=job.augments("serial")))
            wait_for(stage.device)
            times.append(time.perf_counter() - began)
    stage.optimizer = optimizer
    stage.zero_grad()
    return statistics.median(times[1:])


def one_rank_alone(setting: Setting, device: torch.device) -> float | None:
    """Samples/s of exact steps of the whole network on this rank alone; None when that does not fit on one device."""
    size, view = setting.timed_batch, {"augment": setting.config.data.augment}
    ids, exact = np.arange(size), Backprop()

    def step() -> None:
        batch = Batch(ids, size, source.images(ids, **view), whole.task.targets(source, ids, **view))
        for _verb in exact.step(whole, {}, batch):
            raise AssertionError("one stage has nobody to talk to")

    try:
        whole = setting.stage(twin(setting.net, device), 0, (), device)
        source = setting.source(setting.data, setting.data.train, device)
        return size / _seconds(step, device, warm_up=WARM_UP_STEPS)
    except torch.OutOfMemoryError:
        return None


def _seconds(
    act: Callable[[], Any], device: torch.device, before: Callable[[], None] = lambda: None, warm_up: int = 1
) -> float:
    """The median of a few times, after a warm-up; what comes `before` each is not counted."""
    times = []
    for _ in range(warm_up + REPEATS):
        before()
        wait_for(device)
        began = time.perf_counter()
        act()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm_up:])


def _update_seconds(setting: Setting, device: torch.device) -> float:
    """The optimizer's step by parameter of this network, gradients clipped where a run's are."""
    weights = [nn.Parameter(torch.zeros(weight.shape, device=device)) for weight in setting.net.parameters()]
    optimizer, clip = setting.optimizer(weights), setting.config.optim.clip

    def gradients() -> None:
        for weight in weights:
            weight.grad = torch.ones_like(weight)

    def update() -> None:
        if clip:
            nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()

    return _seconds(update, device, gradients) / sum(weight.numel() for weight in weights)


def _packing_seconds(device: torch.device) -> float:
    """A byte of a large message, put into a buffer."""
    tensor = torch.ones(_ENOUGH, device=device)
    return _seconds(lambda: body(tensor), device) / tensor.nbytes


def _data_seconds(setting: Setting, size: int, device: torch.device) -> float:
    """A mini-batch from samples in memory, augmented where the run's are in exact epochs."""
    data, ids = setting.made_up(size), np.arange(size)
    source = setting.source(data, data.train, device)
    return _seconds(lambda: source.images(ids, augment=setting.config.data.augment), device)


def time_cuts(setting: Setting, shapes: Sequence[Shape], device: torch.device) -> tuple[CutCost, ...]:
    """What a cut at a boundary of each of these shapes costs in a parallel step; () where epochs are all exact.

    About: what a stage between two others takes whose output is its input.
    """
    method = setting.method.at(0)
    if method.facts.full_batch or not setting.parallel:
        return ()
    known = {shape: _idle_stage(setting, method, shape, device) for shape in set(shapes)}
    return tuple(known[shape] for shape in shapes)


def _idle_stage(setting: Setting, method: TrainingMethod, shape: Shape, device: torch.device) -> CutCost:
    size, dtype = setting.timed_batch, setting.store_dtype
    stage = Stage(
        1,
        3,
        nn.Sequential(nn.Identity()),
        [shape, shape],
        torch.optim.SGD,
        device=device,
        dtype=setting.precision,
        channels_last=setting.config.run.channels_last,
        first_block=1,
        net_blocks=3,
    )
    own = own_variables(method, stage.place)
    store = MemoryStore([Field(v.name, v.row_shape(stage.place)) for v in own], size, dtype)
    ids, random = np.arange(size), torch.Generator().manual_seed(0)
    copies = {
        f"{side}_{v.name}": torch.rand(size, *cells(shape, v.factor), generator=random).to(device)
        for v in method.variables(stage.place)
        for side in ("next", "prev")
    }
    store.start([ids], read=False)
    store.write(0, {v.name: copies[f"next_{v.name}"] for v in own})
    store.finish(0)

    def one_step() -> list[float]:
        """Until the stage before it is first heard of, from then on, and in putting messages together."""
        spent, began = [0.0, 0.0, 0.0], time.perf_counter()

        def lap(into: int) -> None:
            nonlocal began
            wait_for(device)
            spent[into] += time.perf_counter() - began
            began = time.perf_counter()

        store.start([ids])
        rows = {name: upload(t, device) for name, t in store.read(0).items()} | copies
        lap(1)
        for v in own:
            if v.copy_to is not None:
                body(rows[v.name].to(dtype))
        lap(2)
        steps: list[Step | Talk] = [sweep(stage, rows, Batch(ids, size)) for sweep in sweeps(method)]
        if isinstance(method, InFlight):
            steps.append(method.drain(stage, goes_on=False))
        for verbs in steps:
            part, answer = 0, None
            with suppress(StopIteration):
                while True:
                    verb = verbs.send(answer)
                    lap(part)
                    answer = None
                    if isinstance(verb, Send):
                        body(verb.tensor)
                        lap(2)
                    else:
                        assert isinstance(verb, Recv)
                        answer = torch.zeros(verb.shape, device=device)
                        part = 1 if verb.side == PREV else part
                        began = time.perf_counter()
            lap(part)
        store.write(0, {v.name: copies[f"next_{v.name}"] for v in own})
        store.finish(0)
        lap(1)
        return spent

    rounds = [one_step() for _ in range(1 + CUT_REPEATS)][1:]
    before, behind, packing = (statistics.median(column) for column in zip(*rounds, strict=True))
    first = behind / max(len(own), 1)  # rows and steps of all variables are alike
    return CutCost(before, first, behind - first, packing)
