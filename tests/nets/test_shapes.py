"""trace works on a copy without memory, for networks of any kind."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build
from hpcsplit.nets.shapes import trace, twin
from hpcsplit.plan.blocks import kept_bytes


class Shift(nn.Module):
    """A constant that is no buffer, and tensors made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.ones(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.constant + torch.ones(3, 1, 1) + torch.rand(1)


def test_constants_and_tensors_made_on_the_way() -> None:
    net = nn.Sequential(Shift(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(100, 2))
    assert [each.out_shape for each in trace(net, (3, 7, 7))] == [(3, 7, 7), (4, 5, 5), (100,), (2,)]


def test_a_batchnorm_of_one_pixel_takes_one_sample() -> None:
    assert trace(build("resnet8", (1, 1, 1), 2, block="pre"), (1, 1, 1))[-1].out_shape == (2,)


def test_double_precision() -> None:
    assert trace(nn.Sequential(nn.Linear(3, 2).double()), (3,))[0].out_shape == (2,)


def test_a_block_used_twice_is_counted_twice() -> None:
    twice = nn.ReLU()
    net = nn.Sequential(OrderedDict(a=twice, b=nn.Linear(3, 2), c=twice))
    assert list(net._modules) == ["a", "b", "c"]
    assert [each.out_shape for each in trace(net, (3,))] == [(3,), (2,), (2,)]


def test_a_block_that_does_not_fit_is_named() -> None:
    net = nn.Sequential(OrderedDict(first=nn.Linear(3, 4), second=nn.Linear(5, 2)))
    with pytest.raises(ConfigError, match=r"block 1 second \(Linear\) .* shape \(4,\).*block 0 first \(Linear\)"):
        trace(net, (3,))


class Doubts(nn.Module):
    """Looks at values, in more than one way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().sum() < 0:
            return x
        y: Tensor = self.layer(x) / (1.0 + float(x.detach().abs().max()))
        return y


def test_a_block_that_looks_at_values_gets_some() -> None:
    net = nn.Sequential(nn.Linear(3, 3), Doubts(), nn.Linear(2, 4))
    state = torch.get_rng_state()
    passes = trace(net, (3,))
    assert [p.out_shape for p in passes] == [(3,), (2,), (4,)]
    assert [p.flops for p in passes] == [9, 6, 8]
    assert [p.by_value for p in passes] == [False, True, False]
    assert torch.equal(state, torch.get_rng_state())
    assert all(kept > 0 for kept in kept_bytes(net, (3,)))


def test_integers_are_no_activations() -> None:
    class Rounds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.int()

    with pytest.raises(ConfigError, match=r"block 0 \(Rounds, test_shapes.py line \d+\).*int32.*floating point"):
        trace(nn.Sequential(Rounds(), nn.Linear(3, 2)), (3,))


class Stubborn(nn.Module):
    """What deepcopy refuses: an open file, a lock, the graph of a weight."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file, self.lock, self.weight = path.open("w"), threading.Lock(), nn.Parameter(torch.ones(3))
        self.scaled, self.kept = self.weight * 2, [self.weight * 3]

    def forward(self, x: Tensor) -> Tensor:
        self.file.write(".")
        return x * self.scaled.detach()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_deepcopy_refuses_has_a_twin(tmp_path: Path, device: str) -> None:
    stubborn = Stubborn(tmp_path / "file")
    net = nn.Sequential(stubborn, nn.utils.weight_norm(nn.Linear(3, 2)))
    with pytest.raises((TypeError, RuntimeError)):
        copy.deepcopy(net)
    same = twin(net, device)
    assert same[0].file is net[0].file
    assert {p.device.type for p in same.parameters()} == {device}
    assert {id(p) for p in same.parameters()}.isdisjoint({id(p) for p in net.parameters()})
    assert same(torch.ones(4, 3, device=device)).shape == (4, 2)
    if device == "cpu":
        torch.testing.assert_close(same(torch.ones(4, 3)), net(torch.ones(4, 3)))
    stubborn.file.close()


def test_what_forbids_copies_is_said() -> None:
    class Once(nn.Module):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("there is one of me")

    with pytest.raises(ConfigError, match=r"cannot be copied \(TypeError: there is one of me\)"):
        twin(nn.Sequential(Once()), "cpu")


def test_a_block_that_returns_no_tensor_is_named() -> None:
    with pytest.raises(ConfigError, match=r"block 0 .* returns tuple"):
        trace(nn.Sequential(nn.LSTM(3, 4)), (5, 3))
