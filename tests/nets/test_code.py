"""A user's network is known by what it computes and by its text: neither initial weights nor comments change that."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hpcsplit.nets.code import FUNCTION, NETWORK, SOURCE, change_of, function_of, same_function, source_of

NETS = """
import torch
from torch import nn
from torch.nn import functional as F
import code_helpers
from code_layers import Scale

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2.0 * g

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.lin = nn.Linear(width, width)
        nn.init.zeros_(self.lin.weight)  # a branch that begins at zero
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)
        self.last = Scale()

    def forward(self, x):
        x = x + code_helpers.act(self.lin(F.layer_norm(x, x.shape[1:], eps=1e-5))) * self.scale
        return F.dropout(self.last(x), 0.1, self.training)

def net(input_shape, classes):
    width = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(width, 8), nn.BatchNorm1d(8)), Block(8),
                         nn.Linear(8, classes))
"""
HELPERS = "import torch\ndef act(x):\n    return torch.tanh(x)\n"
LAYERS = "from torch import nn\nclass Scale(nn.Module):\n    def forward(self, x):\n        return x * 1.5\n"
SHAPE = (1, 4, 4)
Prints = Callable[..., dict[str, str]]


@pytest.fixture
def prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prints:
    """prints((old, new), …): the fingerprints of the network with these changes of its text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def take(*changes: tuple[str, str], seed: int = 0) -> dict[str, str]:
        texts = {"code_nets": NETS, "code_helpers": HELPERS, "code_layers": LAYERS}
        for old, new in changes:
            assert any(old in text for text in texts.values())
            texts = {name: text.replace(old, new) for name, text in texts.items()}
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        factory = importlib.import_module("code_nets").net

        def make() -> nn.Sequential:
            torch.manual_seed(seed)
            net: nn.Sequential = factory(input_shape=SHAPE, classes=3)
            return net

        return {
            NETWORK: str(make()),
            FUNCTION: function_of(make, SHAPE),
            SOURCE: source_of("code_nets", make()),
        }

    return take


def test_initial_weights_and_the_state_of_random_numbers_have_no_part(prints: Prints) -> None:
    before = prints()
    torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    assert prints(seed=1) == before
    assert json.loads(before[FUNCTION])["in"] == "float64"


def test_random_numbers_go_on_as_they_would(prints: Prints) -> None:
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(2).tolist(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    prints_of = function_of(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 2)), SHAPE)
    assert json.loads(prints_of)["drawn"]
    assert (torch.rand(2).tolist(), random.random(), np.random.rand()) == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("torch.tanh(x)", "torch.tanh(1.0001 * x)"),  # in a module that the factory's imports
        ("eps=1e-5", "eps=1e-6"),
        ("F.dropout(self.last(x), 0.1", "F.dropout(self.last(x), 0.2"),  # in training only
        ("return F.dropout", "x = Twice.apply(x)\n        return F.dropout"),  # the gradient only
        ("return F.dropout", "x = x.detach() if self.training else x\n        return F.dropout"),
        ("(1,), 0.5)", "(1,), 0.25)"),  # a buffer that no checkpoint has
    ],
    ids=["helper", "eps", "dropout", "gradient", "detach", "buffer"],
)
def test_a_changed_function_is_noticed(prints: Prints, old: str, new: str) -> None:
    before = prints()
    after = prints((old, new))
    assert before[NETWORK] == after[NETWORK]
    assert change_of(before, after) == FUNCTION


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("  # a branch that begins at zero", "  # a branch\n\n", ""),
        ("x = x + code_helpers.act", "x =  x + code_helpers.act", ""),
        ("nn.init.zeros_", "nn.init.ones_", SOURCE),
        ("return torch.tanh(x)", "return x.tanh()", SOURCE),
        ("return x * 1.5", "return 1.5 * x", SOURCE),
        ("* self.scale", "* self.scale.half()", SOURCE),  # 0.5 is 0.5
    ],
)
def test_what_computes_the_same_is_the_same(prints: Prints, old: str, new: str, change: str) -> None:
    assert change_of(prints(), prints((old, new))) == change


def test_another_machine_rounds_otherwise_and_draws_others() -> None:
    here = function_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), SHAPE)

    def shaken(text: str, by: float, **other: object) -> str:
        values = json.loads(text) | other
        for kind in ("eval", "train", "slopes"):
            values[kind] = [value * (1 + by * (-1) ** k) for k, value in enumerate(values[kind])]
        return json.dumps(values)

    assert same_function(here, shaken(here, 1e-12))
    assert not same_function(here, shaken(here, 1e-6))
    noisy = function_of(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 2)), SHAPE)
    values = json.loads(noisy)
    values["train"] = [2 * value for value in values["train"]]
    assert not same_function(noisy, json.dumps(values))
    assert same_function(noisy, json.dumps(values | {"drawn": "9.9 another"}))


class Half(nn.Module):
    """Computes in float32 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.float(), self.lin.weight.float()).to(x.dtype)


class Single(nn.Module):
    """Cannot compute in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(self.lin(x), torch.ones(4, 3))


@pytest.mark.parametrize(("block", "kind"), [(Half, "mixed"), (Single, "float32")])
def test_narrower_arithmetic_is_compared_less_sharply(block: type[nn.Module], kind: str) -> None:
    assert json.loads(function_of(lambda: nn.Sequential(nn.Flatten(), block()), SHAPE))["in"] == kind


def test_what_cannot_be_computed_is_known_by_how_it_prints_itself() -> None:
    assert function_of(lambda: nn.Sequential(nn.Linear(5, 2)), SHAPE) == ""
    old, unknown = {NETWORK: "a"}, {NETWORK: "a", FUNCTION: "", SOURCE: "s"}
    assert change_of(old, unknown) == ""
    assert change_of(old, unknown | {NETWORK: "b"}) == FUNCTION


def test_numbers_of_a_generator_that_is_not_seeded_tell_nothing() -> None:
    class Draws(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * np.random.default_rng().random()

    assert function_of(lambda: nn.Sequential(nn.Flatten(), Draws()), SHAPE) == ""
