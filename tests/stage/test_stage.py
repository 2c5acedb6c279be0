"""A stage knows where it stands, and its neighbours' business is not its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from hpcsplit.nets.resnet import PostBlock
from hpcsplit.stage.stage import Stage, may_draw

SHAPES = ((2, 7, 7), (5,), (3,), (4,))


def stage(index: int, first: int, stop: int, **options: Any) -> Stage:
    """Blocks `first` to `stop` of three, as one of two stages."""
    blocks = nn.Sequential(*[nn.Linear(1, 1) for _ in range(first, stop)])

    def optimizer(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    return Stage(index, 2, blocks, SHAPES[first : stop + 1], optimizer, **options)


def test_a_stage_knows_where_it_stands() -> None:
    first, last = stage(0, 0, 2), stage(1, 2, 3, first_block=2, net_blocks=3)
    assert first.place.shapes == ((2, 7, 7), (5,), (3,))
    assert (first.in_shape, first.out_shape, last.in_shape, last.out_shape) == ((2, 7, 7), (3,), (3,), (4,))
    assert [(s.first, s.last) for s in (first, last)] == [(True, False), (False, True)]
    assert [(s.place.first_block, s.net_blocks) for s in (first, last)] == [(0, 2), (2, 3)]
    first.carry["sum"] = torch.ones(1)
    assert last.carry == {}


def test_other_weights_take_the_place_of_its_own_for_one_pass() -> None:
    """Also where a layer is used twice, and where the pass fails; what is not trained keeps its own."""
    shared, fixed = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    blocks = nn.Sequential(shared, nn.Sequential(nn.ReLU(), fixed), nn.Sequential(shared, nn.Tanh()))
    it = Stage(0, 1, blocks, ((3,),) * 4, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    assert list(it.trained) == ["0.weight", "0.bias"]
    own = {name: p.detach().clone() for name, p in blocks.named_parameters()}
    others = {name: torch.randn_like(p).requires_grad_() for name, p in it.trained.items()}
    x = torch.randn(2, 3)
    y = it.forward(x, others)
    torch.testing.assert_close(y, functional_call(blocks, {**own, **others}, (x,)), rtol=0, atol=0)
    y.sum().backward()
    assert all(t.grad is not None for t in others.values())
    assert all(p.grad is None for p in it.parameters)
    with pytest.raises(RuntimeError):
        it.forward(torch.randn(2, 5), others)
    assert all(p is it.trained.get(name, p) for name, p in blocks.named_parameters())
    torch.testing.assert_close(dict(blocks.named_parameters()), own, rtol=0, atol=0)


class Users(nn.Module):
    """Nobody knows what is in it."""


@pytest.mark.parametrize(
    ("block", "draws"),
    [
        (nn.Linear(2, 2), False),
        (nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), False),
        (PostBlock(4, 4, 1), False),
        (nn.Dropout(0.5), True),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout2d(0.1)), True),
        (nn.RReLU(), True),
        (Users(), True),
    ],
)
def test_only_what_is_known_to_draw_nothing_is_spared_the_seeding(block: nn.Module, draws: bool) -> None:
    assert may_draw(block) is draws


def test_others_have_a_word_after_every_block_forward_and_backward() -> None:
    calls: list[str] = []
    blocks = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    alone = Stage(0, 1, blocks, ((3,), (3,), (3,), (1,)), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    alone.between_blocks = lambda: calls.append("here")
    y = alone.forward(torch.ones(2, 3))
    assert len(calls) == 3
    y.sum().backward()
    assert len(calls) == 6
