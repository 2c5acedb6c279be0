"""BatchNorm's running statistics where they are not those of a plain training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_Taken = list[tuple[_BatchNorm, float | None, list[torch.Tensor]]]


@contextmanager
def statistics_anew(blocks: nn.Module) -> Iterator[None]:
    """Inside, running statistics are the mean over the training passes since its begin; afterwards the old ones."""
    taken = _begin_anew(_norms(blocks))
    yield
    for norm, momentum, old in taken:
        norm.momentum = momentum
        for buffer, value in zip(norm.buffers(), old, strict=True):
            buffer.copy_(value)


@contextmanager
def one_statistics_step(blocks: nn.Module, passes: int) -> Iterator[None]:
    """So many training passes inside move running statistics once, to the mean of what each of them has seen.

    Without it they would take `passes` steps, and forget the mini-batches before so much faster.
    """
    moving = [norm for norm in _norms(blocks) if norm.momentum is not None and norm.training]
    taken = _begin_anew(moving if passes > 1 else [])
    yield
    for norm, momentum, old in taken:
        assert momentum is not None
        norm.momentum = momentum
        mean, var, count = norm.buffers()
        mean.copy_(old[0].lerp(mean, momentum))
        var.copy_(old[1].lerp(var, momentum))
        count.copy_(old[2] + 1)


def _norms(blocks: nn.Module) -> list[_BatchNorm]:
    return [m for m in blocks.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _begin_anew(norms: Iterable[_BatchNorm]) -> _Taken:
    taken: _Taken = [(norm, norm.momentum, [b.detach().clone() for b in norm.buffers()]) for norm in norms]
    for norm, _, _ in taken:
        norm.momentum = None  # torch's word for the mean over all passes since the reset
        norm.reset_running_stats()
    return taken
