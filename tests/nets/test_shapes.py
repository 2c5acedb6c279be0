"""block_shapes works on a copy without memory, for networks of any kind."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from hpcsplit.errors import ConfigError
from hpcsplit.nets import block_names, block_shapes, build


class Shift(nn.Module):
    """A constant that is no buffer, and tensors made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.ones(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.constant + torch.ones(3, 1, 1) + torch.rand(1)


def test_constants_and_tensors_made_on_the_way() -> None:
    net = nn.Sequential(Shift(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(100, 2))
    assert block_shapes(net, (3, 7, 7)) == [(3, 7, 7), (4, 5, 5), (100,), (2,)]


def test_a_batchnorm_of_one_pixel_takes_one_sample() -> None:
    assert block_shapes(build("resnet8", (1, 1, 1), 2, block="pre"), (1, 1, 1))[-1] == (2,)


def test_double_precision() -> None:
    assert block_shapes(nn.Sequential(nn.Linear(3, 2).double()), (3,)) == [(2,)]


def test_a_block_used_twice_is_counted_twice() -> None:
    twice = nn.ReLU()
    net = nn.Sequential(OrderedDict(a=twice, b=nn.Linear(3, 2), c=twice))
    assert block_names(net) == ["a", "b", "c"]
    assert block_shapes(net, (3,)) == [(3,), (2,), (2,)]


def test_a_block_that_does_not_fit_is_named() -> None:
    net = nn.Sequential(OrderedDict(first=nn.Linear(3, 4), second=nn.Linear(5, 2)))
    with pytest.raises(ConfigError, match=r"block second .* shape \(4,\)"):
        block_shapes(net, (3,))


def test_a_block_that_returns_no_tensor_is_named() -> None:
    with pytest.raises(ConfigError, match=r"block 0 .* returns tuple"):
        block_shapes(nn.Sequential(nn.LSTM(3, 4)), (5, 3))
