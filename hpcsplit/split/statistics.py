"""BatchNorm's running statistics where a mini-batch goes through the layers in several passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def one_statistics_step(blocks: nn.Module, passes: int) -> Iterator[None]:
    """So many forward passes inside move running statistics once, to the mean of what each of them has seen.

    Without it they would take `passes` steps, and forget the mini-batches before so much faster.
    """
    norms = [m for m in blocks.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    moving = [(m, m.momentum) for m in norms if m.momentum is not None and m.training and passes > 1]
    before = [[b.detach().clone() for b in norm.buffers()] for norm, _ in moving]
    for norm, _ in moving:
        norm.momentum = None  # torch's word for the mean over all passes since the reset
        norm.reset_running_stats()
    yield
    for (norm, momentum), old in zip(moving, before, strict=True):
        mean, var, count = norm.buffers()
        mean.copy_(old[0].lerp(mean, momentum))
        var.copy_(old[1].lerp(var, momentum))
        count.copy_(old[2] + 1)
        norm.momentum = momentum
