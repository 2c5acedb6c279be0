"""An exponential moving average of a stage's weights (Polyak and Juditsky, "Acceleration of stochastic approximation by
averaging", 1992, with a fixed decay): a̅ ← d a̅ + (1 - d) w after every step of the optimizer, a̅ = w after the first.

As torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn(d), to the bit; buffers stay those of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class Average:
    """The average of these parameters; `weights` are there by name as soon as there has been a step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.weights: dict[str, torch.Tensor] = {}

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take up saved ones, in the place and memory format of the parameters."""
        here = self._parameters
        self.weights = {name: torch.empty_like(here[name].detach()).copy_(t) for name, t in weights.items()}

    @torch.no_grad()
    def add(self) -> None:
        """The weights have made a step."""
        if known := list(self.weights):
            torch._foreach_lerp_([*self.weights.values()], [self._parameters[n] for n in known], 1 - self._decay)
        for name, p in self._parameters.items():
            if name not in self.weights:  # all of them, or those of a stage that had made no step
                self.weights[name] = p.detach().clone()
