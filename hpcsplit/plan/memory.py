"""How much memory a rank needs, from shapes alone: weights, optimizer, activations, rows, images, checkpoint.

Activations are what autograd keeps of a pass for its backward pass, counted on meta tensors, so they are those of
float32 arithmetic; convolution kernels take room of their own beside it for moments, and Python with torch and MPI some
0.3 GB a rank, which no count here has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from hpcsplit.config import Config
from hpcsplit.methods.contract import TrainingMethod
from hpcsplit.nets.shapes import Shadow, meta_sample
from hpcsplit.plan.stages import StagePlan
from hpcsplit.stage.timetable import Order, in_flight
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


def kept_bytes(net: nn.Sequential, input_shape: Sequence[int]) -> list[int]:
    """What autograd keeps for the backward pass of each block, of one sample; a tensor that two blocks share counts
    for the first of them."""
    few, more = (_kept(net, input_shape, size) for size in (2, 4))  # what is kept once, not a sample, drops out
    return [(b - a) // 2 for a, b in zip(few, more, strict=True)]


def _kept(net: nn.Sequential, input_shape: Sequence[int], size: int) -> list[int]:
    shadow = Shadow(net, training=True)
    weights = {t.untyped_storage()._cdata for t in (*shadow.blocks.parameters(), *shadow.blocks.buffers())}
    before: dict[int, torch.Tensor] = {}  # held, so that no storage takes the place of another

    @contextmanager
    def noticed() -> Iterator[dict[int, torch.Tensor]]:
        """What autograd keeps inside and did not before, by its storage."""
        seen: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            key = tensor.untyped_storage()._cdata
            if key not in weights and key not in before and not isinstance(tensor, nn.Parameter):
                seen.setdefault(key, tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            yield seen

    x, counts = meta_sample(net, input_shape, size), []
    with torch.enable_grad():
        for index in range(len(net)):
            x, seen, _ = shadow.passed(index, x, noticed)
            before |= seen
            counts.append(sum(t.untyped_storage().nbytes() for t in seen.values()))
    return counts


def optimizer_states(make: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]) -> int:
    """How many numbers the optimizer keeps for each parameter."""
    weight = nn.Parameter(torch.zeros(64))
    weight.grad = torch.ones_like(weight)
    optimizer = make([weight])
    optimizer.step()
    kept = optimizer.state.get(weight, {}).values()
    return sum(isinstance(value, torch.Tensor) and value.numel() == weight.numel() for value in kept)


def footprint(
    config: Config,
    method: TrainingMethod,
    stage: StagePlan,
    ranks: int,
    kept: Sequence[int],
    states: int,
    *,
    batch_size: int,
    image_bytes: int,
    parallel: bool,
) -> Footprint:
    """The footprint of a stage.

    Args:
        kept: what autograd keeps of each of the stage's blocks, a sample.
        states: numbers that the optimizer keeps for each parameter.
        image_bytes: the data set, if this stage sees it.
        parallel: whether any epoch is.
    """
    schedule, sample = config.schedule, sum(kept)
    ends = [_WIDE_BYTES * math.prod(shape) for shape in (stage.in_shape, stage.out_shape)]
    pieces = in_flight(cast(Order, schedule.pipeline), stage.stage, ranks, schedule.microbatches)
    waiting = ends[0] if schedule.recompute else sample
    exact = -(-batch_size // schedule.microbatches) * (sample + (pieces - 1) * waiting)
    at_once = math.ceil(batch_size * method.at_once(stage.stage, ranks)) * sample if parallel else 0
    rows = stage.row_bytes * batch_size
    return Footprint(
        weights=_WIDE_BYTES * (2 + states) * stage.params,
        activations=max(exact, at_once),
        rows=rows * (1 + AHEAD + BEHIND) + 2 * batch_size * sum(ends) if ranks > 1 else rows,
        store=stage.store_bytes if parallel and config.store.kind == "memory" else 0,
        images=image_bytes,
        checkpoint=_WIDE_BYTES * (1 + states) * stage.params,
    )
