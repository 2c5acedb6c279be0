"""BatchNorm's running statistics where they are not those of a plain training loop."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FreshStatistics:
    """From its making until `restore` or `step`, running statistics are the mean over the training passes meanwhile."""

    def __init__(self, blocks: nn.Module) -> None:
        norms = [m for m in blocks.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
        self._before = [(norm, norm.momentum, [b.detach().clone() for b in norm.buffers()]) for norm in norms]
        for norm in norms:
            norm.momentum = None  # torch's word for the mean over all passes since the reset
            norm.reset_running_stats()

    def restore(self) -> None:
        """The statistics before, as they were."""
        for norm, momentum, old in self._before:
            norm.momentum = momentum
            for buffer, value in zip(norm.buffers(), old, strict=True):
                buffer.copy_(value)

    def step(self) -> None:
        """The statistics before, moved once towards the mean of the passes: several passes count as one mini-batch.

        A plain loop would move them with every pass, and forget earlier mini-batches so much faster.
        """
        for norm, momentum, (old_mean, old_var, count) in self._before:
            norm.momentum = momentum
            weight = 1.0 / (int(count) + 1) if momentum is None else momentum
            mean, var, passes = norm.buffers()
            mean.copy_(old_mean.lerp(mean, weight))
            var.copy_(old_var.lerp(var, weight))
            passes.copy_(count + 1)
