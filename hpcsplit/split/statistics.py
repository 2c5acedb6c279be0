"""BatchNorm's running statistics where they are not those of a plain training loop."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FreshStatistics:
    """From its making until `restore` or `step`, running statistics are the mean over the training passes meanwhile.

    They are other tensors: graphs that wait for their backward pass have saved the ones before.
    """

    def __init__(self, blocks: nn.Module) -> None:
        norms = [m for m in blocks.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and m.training]
        self._before = [(norm, norm.momentum, dict(norm.named_buffers())) for norm in norms]
        for norm, _, old in self._before:
            for name, buffer in old.items():
                setattr(norm, name, buffer.detach().clone())
            norm.momentum = None  # torch's word for the mean over all passes since the reset
            norm.reset_running_stats()

    def restore(self) -> None:
        """The statistics before, as they were."""
        for norm, momentum, old in self._before:
            norm.momentum = momentum
            for name, buffer in old.items():
                setattr(norm, name, buffer)

    def step(self) -> None:
        """The statistics before, moved once towards the mean of the passes: several passes count as one mini-batch.

        A plain loop would move them with every pass, and forget earlier mini-batches so much faster.
        """
        fresh = [list(norm.buffers()) for norm, _, _ in self._before]
        self.restore()
        for (norm, momentum, _), (new_mean, new_var, _) in zip(self._before, fresh, strict=True):
            mean, var, passes = norm.buffers()
            passes += 1
            weight = 1.0 / int(passes) if momentum is None else momentum
            mean.lerp_(new_mean, weight)
            var.lerp_(new_var, weight)
