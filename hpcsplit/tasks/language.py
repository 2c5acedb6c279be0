"""Language modelling: at every place of a sequence the next token, by cross-entropy.

The loss of a sample is the mean over its tokens, in nats a token; beside it stands the perplexity of a whole set,
exp(loss): among so many equally likely tokens the network would choose as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hpcsplit.tasks.task import Classification


@dataclass(frozen=True)
class Language(Classification):
    """Logits (B, T, tokens of the vocabulary) against tokens int64 (B, T).  Right is the share of a sample's tokens."""

    def wrong_shape(
        self, shape: tuple[int, ...], image: tuple[int, ...], classes: int, target: tuple[int, ...] = ()
    ) -> str:
        if shape == (*target, classes):
            return ""
        return f"{(*target, classes)}: a logit for each of {classes} tokens at each place"

    def own_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().own_loss(outputs.flatten(0, 1), targets.flatten()).view_as(targets).mean(1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.given:
            return self.given(outputs, targets)
        return super().score(outputs.flatten(0, 1), targets.flatten()).view_as(targets).mean(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(2) == targets).double().mean(1)

    def noted(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {}

    def figures(self, sums: Mapping[str, Tensor], loss: float, count: int) -> dict[str, float]:
        return {} if self.given or loss > 300 else {"perplexity": math.exp(loss)}
