"""How much memory a rank needs, from shapes alone: weights, optimizer, activations, rows, images, checkpoint.

Activations are what autograd keeps of a pass for its backward pass, counted on meta tensors, so they are those of
float32 arithmetic; convolution kernels take room of their own beside it for moments, and Python with torch and MPI some
0.3 GB a rank, which no count here has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hpcsplit.methods.contract import flights
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.stages import StagePlan
from hpcsplit.schedule.timetable import in_flight, timetable, waiting
from hpcsplit.store.hdf5 import AHEAD, BEHIND

_WIDE_BYTES = 4  # of a float32


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank at its peak.

    Attributes:
        weights: parameters, their gradients, what the optimizer keeps of each.
        activations: of everything in flight in the hungrier kind of epoch.
        rows: mini-batches of auxiliary rows being read, used and written, and neighbours' copies.
        store: a store in memory.
        images: the data set, where a stage sees it.
        checkpoint: the stage's file, which is made in memory between steps, when activations and rows are gone.
    """

    weights: int
    activations: int
    rows: int
    store: int
    images: int
    checkpoint: int

    @property
    def peak(self) -> int:
        return self.weights + self.store + self.images + max(self.activations + self.rows, self.checkpoint)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"peak": self.peak}


def footprints(setting: Setting, stages: Sequence[StagePlan]) -> list[Footprint]:
    """The footprint of each stage of a run."""
    kept, states = iter(setting.kept), _states(setting)
    held = [sum(next(kept) for _ in range(stage.blocks)) for stage in stages]
    return [_footprint(setting, stage, len(stages), bytes_, states) for stage, bytes_ in zip(stages, held, strict=True)]


def _states(setting: Setting) -> int:
    """How many numbers the optimizer keeps for each parameter."""
    weight = nn.Parameter(torch.zeros(64))
    weight.grad = torch.ones_like(weight)
    optimizer = setting.optimizer([weight])
    optimizer.step()
    kept = optimizer.state.get(weight, {}).values()
    return sum(isinstance(value, torch.Tensor) and value.numel() == weight.numel() for value in kept)


def _footprint(setting: Setting, stage: StagePlan, ranks: int, sample: int, states: int) -> Footprint:
    """The footprint of a stage; `sample` is what autograd keeps of one sample in all its blocks."""
    schedule, method, size = setting.config.schedule, setting.method, max(setting.batch_sizes)
    ends = [_WIDE_BYTES * math.prod(shape) for shape in (stage.in_shape, stage.out_shape)]
    pieces = in_flight(setting.exact.order, stage.stage, ranks, schedule.microbatches)
    kept = ends[0] if schedule.recompute else sample
    works = timetable(setting.exact.order, stage.stage, ranks, schedule.microbatches)
    late = waiting(stage.stage, works, schedule.waiting) if setting.exact.defers(ranks) else 0
    late = min(late, schedule.microbatches - pieces)  # gradients take the place of activations that autograd lets go
    exact = -(-size // schedule.microbatches) * ((1 + late) * sample + (pieces - 1) * kept)
    held = 1 + round(flights(method, stage.stage, ranks) * method.microbatches)  # pieces at once
    at_once = math.ceil(size * (held / method.microbatches)) * sample if setting.parallel else 0
    rows = stage.row_bytes * size
    images = setting.train_size + setting.config.data.validation + setting.test_size
    sees = stage.stage in (0, ranks - 1) or method.facts.images
    return Footprint(
        weights=_WIDE_BYTES * (2 + states) * stage.params,
        activations=max(exact, at_once),
        rows=rows * (1 + AHEAD + BEHIND) + 2 * size * sum(ends) if ranks > 1 else rows,
        store=stage.store_bytes if setting.parallel and setting.config.store.kind == "memory" else 0,
        images=images * math.prod(setting.input_shape) if sees else 0,
        checkpoint=_WIDE_BYTES * (1 + states) * stage.params,
    )
