"""Networks that have more than weights: what their layers keep and draw in ways of their own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.engine.tinynet import small

Shape = tuple[int, int, int]


class Running(nn.Module):
    """Divides by a running size that no state dict has; it grows from nothing."""

    size: Tensor
    late: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(()), persistent=False)
        self.register_buffer("late", None, persistent=False)
        self.register_buffer("mask", torch.ones(4), persistent=False)  # stays as it is

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.size.lerp_(x.detach().abs().mean(), 0.3)
            self.late = self.size.reshape(1, 1) * 2
        return x / self.size + (0.01 * self.late.sum() if self.late is not None else 0.0)


class Chance(nn.Module):
    """Draws from `random` and `numpy.random`."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (0.5 + random.random() + np.random.rand()) if self.training else x  # noqa: NPY002


class Steps(nn.Module):
    """Counts its steps in a number and keeps a mean in a tensor, and gives both to the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.mean = 0, torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps, self.mean = self.steps + 1, self.mean * 0.5 + x.detach().mean()
        return x * (1 + 1 / (1 + self.steps)) + self.mean.sum()

    def get_extra_state(self) -> Any:
        return {"steps": self.steps, "mean": self.mean}

    def set_extra_state(self, state: Any) -> None:
        self.steps, self.mean = state["steps"], state["mean"]


class Secret(Steps):
    """The same, and nobody learns of it."""

    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state


class Skipped(nn.Module):
    """A branch that is left out by chance (stochastic depth)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            if not self.training or random.random() < 0.4:
                x = x + branch(x)
        return x


class Kinds(nn.Module):
    """Buffers and weights of every kind of number."""

    int16: Tensor
    float8_e4m3fn: Tensor

    def __init__(self) -> None:
        super().__init__()
        for dtype in (torch.int8, torch.int16, torch.uint16, torch.uint32, torch.bool, torch.float8_e4m3fn):
            self.register_buffer(str(dtype).removeprefix("torch."), torch.ones(3).to(dtype))
        self.register_buffer("none", torch.zeros(0, 3))
        self.register_buffer("z", torch.ones(2, dtype=torch.complex64).conj())
        self.scale = nn.Parameter(torch.ones(()))
        self.turn = nn.Parameter(torch.ones((), dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale * self.turn).real + self.int16.sum() + self.float8_e4m3fn.float().sum()


def _net(layer: nn.Module, shape: Shape, classes: int) -> nn.Sequential:
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(size, 8)), nn.Sequential(nn.Tanh(), layer), nn.Linear(8, classes)
    )


def running(input_shape: Shape, classes: int) -> nn.Sequential:
    return _net(Running(), input_shape, classes)


def chance(input_shape: Shape, classes: int) -> nn.Sequential:
    return _net(Chance(), input_shape, classes)


def steps(input_shape: Shape, classes: int) -> nn.Sequential:
    return _net(Steps(), input_shape, classes)


def secret(input_shape: Shape, classes: int) -> nn.Sequential:
    return _net(Secret(), input_shape, classes)


def skipped(input_shape: Shape, classes: int) -> nn.Sequential:
    return _net(Skipped(8), input_shape, classes)


def kinds(input_shape: Shape, classes: int) -> nn.Sequential:
    return _net(Kinds(), input_shape, classes)


def normed(input_shape: Shape, classes: int) -> nn.Sequential:
    return _net(nn.Sequential(nn.BatchNorm1d(8), Running(), Steps()), input_shape, classes)


def other_head(input_shape: Shape, classes: int) -> nn.Sequential:
    """The small network of most tests with twice as many features before its last layer."""
    net = small(input_shape, classes)
    net.head = nn.Sequential(nn.Sequential(nn.ReplicationPad2d((0, 0, 0, 4)), nn.Flatten()), nn.Linear(256, classes))
    return net
