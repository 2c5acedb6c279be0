"""The interface of a task, and the plain one: a class for each image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.nn import functional as F


class Samples(Protocol):
    """A data set dealt out by sample id."""

    def images(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> Tensor: ...

    def labels(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> Tensor: ...


class Task(ABC):
    """What the last stage's output is compared with, and how.  `lipschitz` is a constant of the loss of one sample
    as a function of its output; None where there is none."""

    lipschitz: float | None = None

    @abstractmethod
    def targets(self, samples: Samples, ids: np.ndarray, **view: Any) -> Tensor:
        """What the outputs of samples `ids` (B,) should be, (B, …); `view` is that of their images."""

    @abstractmethod
    def wrong_shape(self, shape: tuple[int, ...], image: tuple[int, ...], classes: int) -> str:
        """What the network's output of one sample, of this shape, should be in place of it, in words; or ""."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """φ of each sample, (B,): what training descends."""

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is reported as the loss of each sample, (B,)."""
        return self.loss(outputs, targets)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Which outputs are right, bool (B,); None where accuracy means nothing."""
        return None

    def pictures(self, outputs: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """The outputs as images (B, *shape), normalised as the inputs are; None where they are no images."""
        return None


class Classification(Task):
    """Logits (B, classes) against labels int64 (B,), by cross-entropy."""

    lipschitz = math.sqrt(2.0)  # the slope softmax − e_y is shorter, and comes close

    def targets(self, samples: Samples, ids: np.ndarray, **view: Any) -> Tensor:
        return samples.labels(ids, **view)

    def wrong_shape(self, shape: tuple[int, ...], image: tuple[int, ...], classes: int) -> str:
        if shape == (classes,):
            return ""
        flat = "; end with nn.Flatten()" if math.prod(shape) == classes else ""
        return f"a vector of {classes}, a logit for each class{flat}"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(1) == targets
