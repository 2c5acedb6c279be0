"""Data sets and a network of a user's own code, good and bad."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Noisy(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Sample n is n and a number drawn by each of the generators that transforms use."""

    classes = ("even", "odd")

    def __init__(self, size: int, broken: int = -1) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        if n == self.broken:
            raise KeyError("lost")
        drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
        return torch.tensor([float(n), *drawn]), n % 2


def noisy(size: int = 0) -> tuple[Any, Any]:
    return Noisy(20), Noisy(6)


def broken() -> tuple[Any, Any]:
    return Noisy(20, broken=13), Noisy(6)


def ragged() -> tuple[Any, Any]:
    return [(torch.zeros(2 + (n == 4)), n % 2) for n in range(9)], [(torch.zeros(2), 0)]


def of_arrays(**keywords: Any) -> tuple[Any, Any]:
    assert set(keywords) == {"root", "download", "seed", "size", "context"}
    return (np.eye(4), np.arange(4)), (torch.eye(4), torch.arange(4))


def one_part() -> Any:
    return Noisy(20)


def perceptron(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    first = nn.Sequential(nn.Linear(input_shape[0], 8), nn.ReLU())
    return nn.Sequential(first, nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, classes))
