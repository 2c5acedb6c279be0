"""The small network with other outputs."""

from __future__ import annotations

from torch import nn

from tests.engine.tinynet import small


def one_number(input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    assert classes == 1
    return small(input_shape, classes)


def five_tokens(input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    net = small(input_shape, 5 * classes)
    net.add_module("rows", nn.Unflatten(1, (5, classes)))
    return net
