"""BatchNorm's running statistics where they are not those of a plain training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpcsplit.stage.stage import Stage


class FreshStatistics:
    """From its making until `restore` or `step`, running statistics are the mean over the training passes meanwhile.

    They are other tensors: graphs that wait for their backward pass have saved the ones before.  The passes are counted
    on the host: torch's own mean (momentum None) reads its count from the device, and so waits for it, in every pass.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        kept = [m for m in stage.blocks.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        norms = [m for m in kept if m.training]
        self._before = [(norm, norm.momentum, dict(norm.named_buffers())) for norm in norms]
        self._passes = dict.fromkeys(norms, 0)
        self._hooks = [norm.register_forward_pre_hook(self._count) for norm in norms]
        for norm, _, old in self._before:
            for name, buffer in old.items():
                setattr(norm, name, buffer.detach().clone())  # the first pass leaves nothing of it

    def _count(self, norm: nn.Module, inputs: Any) -> None:
        assert isinstance(norm, _BatchNorm)
        self._passes[norm] += not self._stage.repeats
        norm.momentum = 1.0 / max(1, self._passes[norm])

    def restore(self) -> None:
        """The statistics before, as they were."""
        for hook in self._hooks:
            hook.remove()
        for norm, momentum, old in self._before:
            norm.momentum = momentum
            for name, buffer in old.items():
                setattr(norm, name, buffer)

    def step(self) -> None:
        """The statistics before, moved once towards the mean of the passes: several passes count as one mini-batch.

        A plain loop would move them with every pass, and forget earlier mini-batches so much faster.  Those of a layer
        that no pass has reached stay.
        """
        fresh = [list(norm.buffers()) for norm, _, _ in self._before]
        self.restore()
        moves: dict[float, tuple[list[Tensor], list[Tensor]]] = {}  # by how far: few calls for many layers
        for (norm, momentum, _), (new_mean, new_var, _) in zip(self._before, fresh, strict=True):
            if not self._passes[norm]:
                continue
            mean, var, passes = norm.buffers()
            passes += 1
            old, new = moves.setdefault(1.0 / int(passes) if momentum is None else momentum, ([], []))
            old += mean, var
            new += new_mean, new_var
        for weight, (old, new) in moves.items():
            torch._foreach_lerp_(old, new, weight)
