"""A small network with everything that matters here: BatchNorm, a boundary of odd size, six blocks to cut between."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def _block(channels_in: int, channels: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, padding, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


def small(input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Boundaries for 3 x 32 x 32: 6x8x8, 6x7x7, 8x7x7, 8x4x4, 8x4x4."""
    return nn.Sequential(
        OrderedDict(
            stem=_block(input_shape[0], 6, 4, stride=4),
            body1=_block(6, 6, 2),
            body2=_block(6, 8, 3, padding=1),
            body3=_block(8, 8, 3, stride=2, padding=1),
            body4=_block(8, 8, 1),
            head=nn.Sequential(nn.Flatten(), nn.Linear(8 * 4 * 4, classes)),
        )
    )


class Noisy(nn.Module):
    """A random layer that is no nn.Dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)


def noisy(input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    net = small(input_shape, classes)
    body: Any = net.body4
    body.append(Noisy())
    return net
