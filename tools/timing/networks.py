"""Networks that only races train, by model.name = "tools.timing.networks:NAME"."""

from __future__ import annotations

import torch
from torch import nn

from hpcsplit.nets.resnet import PostBlock, conv3x3

ODE = f"{__name__}:ode"
STEPS, CHANNELS = 16, 16  # of the ODE net


def blank110(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The blocks and layers of resnet110 for images (C, H, W), each with one channel: it hardly computes, so its steps
    show what is around the arithmetic."""
    stem = nn.Sequential(conv3x3(input_shape[0], 1), nn.BatchNorm2d(1), nn.ReLU(inplace=True))
    blocks = [PostBlock(1, 1, 2 if index in (18, 36) else 1) for index in range(54)]
    return nn.Sequential(stem, *blocks, head(1, classes))


def ode(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """x' = rate(x) from time 0 to 1 in steps of Euler's method, between an opening layer and a head; no BatchNorm."""
    stem = nn.Sequential(conv3x3(input_shape[0], CHANNELS), nn.ReLU())
    return nn.Sequential(stem, *(EulerStep() for _ in range(STEPS)), head(CHANNELS, classes))


def head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def rate() -> nn.Sequential:
    """ReLU(conv(ReLU(conv(x)))), as in TorchBraid's examples."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()
    )


class EulerStep(nn.Module):
    """x + rate(x) / STEPS, with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = rate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.rate(x) / STEPS
        return y
