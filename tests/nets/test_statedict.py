"""A state dict as tensors alone, and back; what no checkpoint can keep is refused with its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hpcsplit.errors import ConfigError
from hpcsplit.nets.statedict import check_state, entry, is_extra, passing_buffers, tensors_of, values_of


class Extra(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.value = value

    def get_extra_state(self) -> Any:
        return self.value

    def set_extra_state(self, value: Any) -> None:
        self.value = value


VALUES: list[Any] = [
    torch.arange(6, dtype=torch.int16).reshape(2, 3),
    torch.zeros(()),
    None,
    7,
    0.1,
    "κ",
    [],
    {"steps": 3, "ema": torch.ones(2), "inner": [{"a": torch.zeros(0)}, True, None]},
]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_an_extra_state_comes_back(value: Any) -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.Sequential(Extra(value)))
    flat = tensors_of(net)
    assert all(isinstance(t, torch.Tensor) and not t.requires_grad for t in flat.values())
    found = values_of(flat)
    assert list(found) == list(net.state_dict())
    assert same(found["1.0._extra_state"], value)
    assert {entry(name) for name in flat if is_extra(name)} == {"1.0._extra_state"}


def test_without_an_extra_state_it_is_the_state_dict() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    flat, plain = tensors_of(net), net.state_dict()
    assert list(flat) == list(plain)
    assert all(torch.equal(flat[name], plain[name]) for name in plain)
    assert not any(map(is_extra, flat))


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {"a": ...}, b"pickle", {"__tensor__": 0}, {1, 2}], ids=repr)
def test_other_extra_states_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"1\.0: get_extra_state .* returns \w+, which no checkpoint keeps; return"):
        check_state(nn.Sequential(nn.Linear(1, 1), nn.Sequential(Extra(value))))


class NeverTaken(nn.Module):
    def get_extra_state(self) -> int:
        return 1


def test_half_of_an_extra_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 of the network has get_extra_state without set_extra_state"):
        check_state(nn.Sequential(NeverTaken()))


@pytest.mark.parametrize(
    ("buffer", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.eye(3).to_sparse_csr(), "sparse_csr"),
        (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantized"),
    ],
    ids=["coo", "csr", "quantized"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_refused(buffer: torch.Tensor, kind: str) -> None:
    net = nn.Sequential(nn.Linear(1, 1))
    net[0].register_buffer("table", buffer)
    with pytest.raises(ConfigError, match=rf"0\.table of the network is a {kind} tensor, which no checkpoint can keep"):
        check_state(net)


def test_buffers_of_no_state_dict() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Linear(1, 1)))
    net.get_submodule("1.0").register_buffer("seen", torch.ones(2), persistent=False)
    assert list(passing_buffers(net)) == ["1.0.seen"]
