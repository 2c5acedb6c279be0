"""The interface of a task, and the plain one: a class for each sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hpcsplit.tasks.losses import Loss

MANY = 10  # classes, above which it is worth knowing whether the right one is among the five most likely


class Samples(Protocol):
    """A data set dealt out by sample id."""

    def images(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> Tensor: ...

    def labels(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> Tensor: ...


@dataclass(frozen=True)
class Task(ABC):
    """What the last stage's output is compared with, and how.

    Attributes:
        given: the loss that the user has chosen in place of the task's own.
    """

    given: Loss | None = None

    @property
    def lipschitz(self) -> float | None:
        """A constant of the loss of one sample as a function of its output; None where none is known."""
        return None

    def targets(self, samples: Samples, ids: np.ndarray, **view: Any) -> Tensor:
        """What the outputs of samples `ids` (B,) should be, (B, …); `view` is that of their images."""
        return samples.labels(ids, **view)

    @abstractmethod
    def wrong_shape(
        self, shape: tuple[int, ...], image: tuple[int, ...], classes: int, target: tuple[int, ...] = ()
    ) -> str:
        """What the network's output of one sample, of this shape, should be in place of it, in words; or "".  `image`
        and `target` are the shapes of a sample and of what belongs to it."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """φ of each sample, (B,): what training descends."""
        return self.given(outputs, targets) if self.given else self.own_loss(outputs, targets)

    @abstractmethod
    def own_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """φ of each sample where the user has not chosen another."""

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is reported as the loss of each sample, (B,)."""
        return self.loss(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Which outputs are right, (B,), or the share of each that is; None where accuracy means nothing."""
        return None

    def noted(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """More of each sample, (B, …), whose sums over a set `figures` understands."""
        return {}

    def figures(self, sums: Mapping[str, Tensor], loss: float, count: int) -> dict[str, float]:
        """More numbers of a set of so many samples: "accuracy_top5", "perplexity", "r2"."""
        return {}

    def pictures(self, outputs: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """The outputs as images (B, *shape), normalised as the inputs are; None where they are no images."""
        return None


@dataclass(frozen=True)
class Classification(Task):
    """Logits (B, classes) against labels int64 (B,), or shares of the classes (B, classes), by cross-entropy.

    Reported is the plain cross-entropy, in nats, whatever training makes of it:

    Attributes:
        smoothing: of a label, dealt out to all classes in equal parts (Szegedy et al. 2016).
        weights: of the classes, as torch's `weight`; empty: 1.  A sample's loss is multiplied by that of its class.  A
            mini-batch's loss is the mean over its samples, so no sample's part depends on the others, where torch's
            reduction="mean" divides by the sum of their weights.
    """

    smoothing: float = 0.0
    weights: tuple[float, ...] = ()

    @property
    def lipschitz(self) -> float | None:
        """The slope softmax − target is shorter than √2, and comes close."""
        return None if self.given else math.sqrt(2.0) * max(self.weights, default=1.0)

    def wrong_shape(
        self, shape: tuple[int, ...], image: tuple[int, ...], classes: int, target: tuple[int, ...] = ()
    ) -> str:
        if shape == (classes,):
            return ""
        flat = "; end with nn.Flatten()" if math.prod(shape) == classes else ""
        return f"a vector of {classes}, a logit for each class{flat}"

    def own_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight = _on_device(self.weights, outputs.dtype, outputs.device) if self.weights else None
        return F.cross_entropy(outputs, targets, weight, reduction="none", label_smoothing=self.smoothing)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.given(outputs, targets) if self.given else F.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(1) == targets

    def noted(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        if outputs.shape[1] <= MANY:
            return {}
        return {"in_five": (outputs.topk(5, dim=1).indices == targets[:, None]).any(1)}

    def figures(self, sums: Mapping[str, Tensor], loss: float, count: int) -> dict[str, float]:
        return {"accuracy_top5": float(sums["in_five"]) / count} if "in_five" in sums else {}


@cache
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
