"""Networks from the user's own module: good ones are taken, each broken promise is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build

MODULE = """
from collections import OrderedDict
import torch
from torch import nn

NUMBER = 3

def good(input_shape, classes):
    c, h, w = input_shape
    return nn.Sequential(OrderedDict(
        stem=nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.ReLU(inplace=True)),
        flat=nn.Flatten(),
        head=nn.Linear(4 * h * w, classes),
    ))

def no_module(input_shape, classes):
    return nn.functional.relu

class Tied(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.flat, self.mix, self.head = nn.Flatten(), nn.Linear(16, classes), nn.Linear(classes, 16)
        self.head.weight = nn.Parameter(self.mix.weight.data.t())
    def forward(self, x):
        return self.head(self.mix(self.flat(x)))

def tied_module(input_shape, classes):
    return Tied(classes)

class Skips(nn.Sequential):
    def forward(self, x):
        for block in self:
            if x.sum() > 0:
                x = block(x)
        return x

def own_forward(input_shape, classes):
    return Skips(nn.Identity(), nn.Flatten())

class Skip(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, classes)
    def forward(self, x):
        x = torch.flatten(x, 1)
        return self.two(x + torch.relu(self.one(x)))

def own_forward_that_can_be_followed(input_shape, classes):
    return Skip(classes)

def empty(input_shape, classes):
    return nn.Sequential()

def wrong_arguments(shape):
    return nn.Sequential(nn.Flatten())

def needs_a_value(input_shape, classes):
    return nn.Linear(1 // 0, classes)

def tied(input_shape, classes):
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    return nn.Sequential(OrderedDict(one=first, two=second))

def tied_through_data(input_shape, classes):
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = nn.Parameter(first.weight.data)
    return nn.Sequential(first, second)

def lazy(input_shape, classes):
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), head=nn.LazyLinear(classes)))

def sparse(input_shape, classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    net[1].register_buffer("graph", torch.eye(3).to_sparse())
    return net

class Pickled(nn.Module):
    def get_extra_state(self):
        return {1, 2}
    def set_extra_state(self, state):
        pass
    def forward(self, x):
        return x

def pickled(input_shape, classes):
    return nn.Sequential(nn.Flatten(), Pickled(), nn.Linear(16, classes))
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_nets.py").write_text(MODULE)
    (tmp_path / "user_broken.py").write_text("import a_library_that_is_not_there\n")
    (tmp_path / "user_typo.py").write_text("def factory(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("user_nets", "user_broken", "user_typo"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_good_factory() -> None:
    net = build("user_nets:good", (1, 4, 4), 5)
    assert list(net._modules) == ["stem", "flat", "head"]
    assert net(torch.zeros(2, 1, 4, 4)).shape == (2, 5)


def test_any_module() -> None:
    net = build("user_nets:own_forward_that_can_be_followed", (1, 4, 4), 5)
    assert list(net._modules) == ["one", "two"]
    assert net(torch.zeros(2, 1, 4, 4)).shape == (2, 5)


def test_a_good_factory_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert next(build("user_nets:good", (1, 4, 4), 5).parameters()).is_meta


def test_checking_does_not_disturb_the_random_state() -> None:
    torch.manual_seed(4)
    net = build("user_nets:good", (1, 4, 4), 5)
    after = torch.get_rng_state()
    torch.manual_seed(4)
    again = sys.modules["user_nets"].good(input_shape=(1, 4, 4), classes=5)
    assert torch.equal(after, torch.get_rng_state())
    vector = nn.utils.parameters_to_vector
    assert torch.equal(vector(net.parameters()), vector(again.parameters()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:factory", "importing no_such_module failed .*PYTHONPATH"),
        ("user_broken:factory", "a_library_that_is_not_there"),
        ("user_typo:factory", "SyntaxError"),
        ("user_nets:missing", "has no function missing"),
        ("user_nets:NUMBER", "has no function NUMBER"),
        ("user_nets:no_module", r"user_nets.py line 16\): it returned function; return an nn.Sequential or another"),
        (
            "user_nets:tied_module",
            r"user_nets.py line 27\): block 0 mix \(Tied, user_nets.py line 19\) and block 1 head \(Linear\) share a p",
        ),
        (
            "user_nets:own_forward",
            r"line 37\): the forward of Skips cannot be followed \(TraceError: .*, user_nets.py line 33\); write that",
        ),
        ("user_nets:empty", "0 blocks; it needs at least 1"),
        ("user_nets:wrong_arguments", "failed .*TypeError.*correct the factory"),
        ("user_nets:needs_a_value", r"failed \(ZeroDivisionError.* user_nets.py line 58"),
        ("user_nets:tied", r"block 0 one \(Linear\) and block 1 two \(Linear\) share a parameter"),
        ("user_nets:tied_through_data", r"block 0 \(Linear\) and block 1 \(Linear\) share a parameter"),
        ("user_nets:lazy", r"head \(LazyLinear\) is a lazy layer"),
    ],
)
def test_broken_promises_are_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, (1, 4, 4), 8)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("sparse", "1.graph of the network is a sparse_coo tensor"),
        ("pickled", "1: get_extra_state of the network returns set"),
    ],
)
def test_what_no_checkpoint_could_keep_is_refused_before_the_run(factory: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        build(f"user_nets:{factory}", (1, 4, 4), 5)
