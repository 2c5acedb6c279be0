"""Losses of a user's: good ones, and some with a bug."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Any]


def focal() -> Loss:
    """Lin et al. 2017, γ = 2."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        log_p = outputs.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
        return -((1 - log_p.exp()) ** 2) * log_p

    return loss


def of_a_module() -> nn.Module:
    return nn.CrossEntropyLoss(weight=torch.ones(10), reduction="none")


def mean_of_all() -> Loss:
    return F.cross_entropy


def misspelt() -> Loss:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, target, reduction="none")  # type: ignore[name-defined]  # noqa: F821

    return loss


def without_gradient() -> Loss:
    return lambda outputs, targets: F.cross_entropy(outputs.detach(), targets, reduction="none")


def with_weights() -> nn.Module:
    return nn.Linear(10, 1)


def no_function() -> None:
    return None


def fails() -> Loss:
    raise RuntimeError("not today")


def later() -> Loss:
    """Fails in training only: for more than two samples."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if len(outputs) > 2:
            raise ValueError("too many samples")
        return F.cross_entropy(outputs, targets, reduction="none")

    return loss
