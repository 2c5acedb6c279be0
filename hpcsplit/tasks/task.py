"""The interface of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import torch


class Samples(Protocol):
    """A data set dealt out by sample id."""

    def images(self, ids: np.ndarray, *, epoch: int = 0, augment: bool = False) -> torch.Tensor: ...

    def labels(self, ids: np.ndarray) -> torch.Tensor: ...


class Task(ABC):
    """What the last stage's output is compared with, and how.

    `lipschitz` is a constant of the loss of one sample as a function of its output; None where there is none.
    """

    lipschitz: float | None = None

    @abstractmethod
    def targets(self, samples: Samples, ids: np.ndarray, **view: Any) -> torch.Tensor:
        """What the outputs of samples `ids` (B,) should be, (B, …); `view` is that of their images."""

    @abstractmethod
    def wrong_shape(self, shape: tuple[int, ...], image: tuple[int, ...], classes: int) -> str:
        """What the network's output of one sample, of this shape, should be in place of it, in words; or ""."""

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """φ of each sample, (B,): what training descends."""

    def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """What is reported as the loss of each sample, (B,)."""
        return self.loss(outputs, targets)

    def correct(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Which outputs are right, bool (B,); None where accuracy means nothing."""
        return None

    def pictures(self, outputs: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
        """The outputs as images (B, *shape), normalised as the inputs are; None where they are no images."""
        return None
