"""Times the parts of a training step on this device, each for itself, without training anything."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcsplit.data.dataset import Dataset, Part
from hpcsplit.engine.job import Job
from hpcsplit.host.device import wait_for
from hpcsplit.plan.blocks import BlockTime, block_times
from hpcsplit.plan.cut_cost import time_cuts
from hpcsplit.plan.profile import Profile
from hpcsplit.plan.setting import Setting
from hpcsplit.stage.stage import Stage
from hpcsplit.wire.message import body
from hpcsplit.wire.port import Verb

ROUNDS, FEW_ROUNDS = 9, 3
REPEATS = 5
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
    piece = max(1, size // pieces)
    sizes, deferred = sorted({size, piece, max(1, size // own)}), [piece] if cuts and setting.exact.deferred else []
    found = time_blocks(setting, sizes, repeats, device, deferred=deferred)
    times = dict(zip(sizes, found, strict=False))
    of_own = times[max(1, size // own)]
    return Profile(
        blocks=tuple(times[size]),
        pieces=tuple(times[piece]),
        late=tuple(found[-1]) if deferred else (),
        cut=tuple(BlockTime(own * t.forward_s, own * t.backward_s) for t in of_own) if own > 1 else (),
        own=own,
        microbatches=pieces,
        cut_costs=time_cuts(setting, setting.shapes[:-1], device) if cuts else (),
        params=tuple(block.params for block in setting.blocks),
        update_s=_update_seconds(setting, device),
        data_s=_data_seconds(setting, size, device),
        packing_s=_packing_seconds(device),
    )


def time_blocks(
    setting: Setting, sizes: Sequence[int], repeats: int, device: torch.device, *, deferred: Sequence[int] = ()
) -> list[list[BlockTime]]:
    """The passes of each block with so many samples, for each of the sizes, as this configuration computes them; then
    for each of those in `deferred`, whose weight gradients wait."""
    return block_times(
        setting.net,
        setting.blocks,
        sizes,
        deferred=deferred,
        repeats=repeats,
        channels_last=setting.config.run.channels_last,
        autocast_dtype=setting.precision if setting.precision != torch.float32 else None,
        device=device,
    )


def rehearse(stage: Stage, size: int) -> float | None:
    """Seconds of this stage's blocks for `size` samples, forward and backward: for all ranks at once, who then take
    memory, caches and power from each other.  Weights, statistics and gradients stay as they were.

    None where so many samples do not fit, as with a stage that takes them in micro-batches only.
    """
    try:
        return _rehearsed(stage, size)
    except torch.OutOfMemoryError:
        return None
    finally:
        stage.zero_grad()


def _rehearsed(stage: Stage, size: int) -> float:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(size, *stage.in_shape, generator=random).to(stage.device, stage.dtype)
    x.requires_grad_(not stage.first)
    stage.blocks.train()
    times: list[float] = []
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


def _update_seconds(setting: Setting, device: torch.device) -> float:
    """The optimizer's step by parameter of this network, gradients clipped where a run's are."""
    weights = [nn.Parameter(torch.zeros(weight.shape, device=device)) for weight in setting.net.parameters()]
    optimizer, times = setting.optimizer(weights), []
    for _ in range(1 + REPEATS):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        wait_for(device)
        began = time.perf_counter()
        if clip := setting.config.optim.clip:
            nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / sum(weight.numel() for weight in weights)


def _packing_seconds(device: torch.device) -> float:
    """A byte of a large message, put into a buffer."""
    tensor, times = torch.ones(_ENOUGH, device=device), []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        body(tensor)
        wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / tensor.nbytes


def _data_seconds(setting: Setting, size: int, device: torch.device) -> float:
    """A mini-batch from images in memory, augmented where the run's are in exact epochs."""
    shape, ids, times = setting.input_shape, np.arange(size), []
    part = Part(torch.zeros(size, *shape, dtype=torch.uint8), torch.zeros(size, dtype=torch.int64))
    dataset = Dataset(part, part, torch.zeros(shape[0]), torch.ones(shape[0]))
    source = setting.source(dataset, part, device)
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        source.images(ids, augment=setting.config.data.augment)
        wait_for(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])
