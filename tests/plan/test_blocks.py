"""Costs against counts by hand, measured seconds against a clock that the test holds."""

from __future__ import annotations

import time
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import nn

from hpcsplit.nets.catalog import build
from hpcsplit.nets.shapes import trace
from hpcsplit.plan import blocks as module
from hpcsplit.plan.blocks import BlockTime, block_costs, block_times
from hpcsplit.stage.deferred import DeferredGradients


def times_of(net: nn.Sequential, shape: tuple[int, ...], *args: Any, **more: Any) -> list[list[BlockTime]]:
    return block_times(net, block_costs(net, shape), *args, **more)


def test_multiply_adds_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 5 x 5 outputs
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.Flatten(),
        nn.Linear(100, 6),
    )
    costs = block_costs(net, (3, 9, 9))
    assert [cost.flops for cost in costs] == [5 * 5 * 8 * 27, 0, 5 * 5 * 4 * 4, 0, 600]
    assert [cost.params for cost in costs] == [8 * 27 + 8, 16, 4 * 4 + 4, 0, 606]


def multiply_adds(name: str) -> int:
    return sum(block.flops for block in block_costs(build(name, (3, 32, 32), 10), (3, 32, 32)))


def test_published_multiply_adds() -> None:
    """resnet20 is known as 41 M and wrn-28-10 as 5.2 G multiply-adds."""
    with torch.device("meta"):
        assert multiply_adds("resnet20") == 40_551_040
        assert multiply_adds("wrn-28-10") == pytest.approx(5.24e9, rel=0.01)


def test_block_costs_tell_the_same_as_the_single_functions() -> None:
    net = build("resnet8", (1, 28, 28), 10)
    costs = block_costs(net, (1, 28, 28))
    assert [c.name for c in costs] == list(net._modules)
    assert [c.out_shape for c in costs] == [each.out_shape for each in trace(net, (1, 28, 28))]
    assert [c.in_shape for c in costs] == [(1, 28, 28), *(c.out_shape for c in costs[:-1])]


def test_a_meta_network_is_measured_and_stays_on_meta() -> None:
    with torch.device("meta"):
        net = build("resnet8", (1, 8, 8), 3, block="pre")
    assert all(block.seconds > 0 for block in times_of(net, (1, 8, 8), (2,), repeats=1)[0])
    assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))


def test_measuring_inside_no_grad_still_measures_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = []
    original: Any = torch.Tensor.backward

    def noted(y: torch.Tensor, seed: torch.Tensor) -> None:
        backward.append(y)
        original(y, seed)

    monkeypatch.setattr(torch.Tensor, "backward", noted)
    with torch.no_grad():
        times_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), (2,), repeats=3)
    assert len(backward) == 4  # warm-up and repeats of the linear layer; images need no gradient


def test_more_work_takes_longer() -> None:
    small, large = times_of(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 16384)), (64,), (64,), repeats=5)[0]
    assert large.seconds > 3 * small.seconds


def test_the_lower_quartile_ignores_the_warm_up_and_slow_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = list(accumulate([100, 2, 60, 1, 50, 2]))  # the warm-up first
    clock = iter([0, *(moment for end in ends for moment in (end - 1, end, end))])  # a second of it backward
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert times_of(nn.Sequential(nn.Linear(2, 2)), (2,), (1,), repeats=5) == [[BlockTime(1, 1)]]


def test_blocks_that_look_alike_get_the_same_number() -> None:
    net = build("mlp", (1, 4, 4), 3, depth=5, width=8)
    seconds = [block.seconds for block in times_of(net, (1, 4, 4), (4,), repeats=1)[0]]
    assert len(set(seconds[1:5])) == 1
    assert seconds[0] != seconds[1] != seconds[5]


def test_all_sizes_are_timed_in_the_same_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What disturbs one of them for a while disturbs the other, too."""
    timed: list[tuple[int, bool]] = []

    def seconds(block: nn.Module, x: torch.Tensor, _: object, queue: object) -> tuple[float, float, float]:
        timed.append((len(x), queue is not None))
        return 2.0 * len(x), (2.0 if queue is None else 1.5) * len(x), 1.0 * len(x)

    monkeypatch.setattr(module, "_seconds", seconds)
    whole, piece, late = times_of(nn.Sequential(nn.Linear(2, 2)), (2,), (8, 2), deferred=[2], repeats=2)
    assert timed == [(8, False), (2, False), (2, True)] * 3
    assert (whole, piece, late) == ([BlockTime(8.0, 8.0)], [BlockTime(2.0, 2.0)], [BlockTime(2.0, 2.0, 1.0)])


def test_what_a_device_is_still_computing_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is always a second behind: it is waited for before, between and behind the passes."""
    now = [0.0]

    def wait(device: torch.device) -> None:
        now[0] += 1.0

    monkeypatch.setattr(module, "wait_for", wait)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert module._seconds(nn.Linear(2, 2), torch.ones(1, 2), None) == (2.0, 2.0, 1.0)
    assert now[0] == 3.0
    queue, layer = DeferredGradients(), nn.Linear(2, 2)
    assert module._seconds(layer, torch.ones(1, 2), None, queue) == (2.0, 2.0, 1.0)  # it only looks
    assert module._seconds(layer, torch.ones(1, 2), None, queue) == (3.0, 2.0, 1.0)
    assert now[0] == 10.0


def test_weight_gradients_that_wait_are_timed_apart() -> None:
    [[plain], [late]] = times_of(nn.Sequential(nn.Linear(64, 64)), (64,), (256,), deferred=[256], repeats=3)
    assert plain.weights_s == 0.0
    assert 0.0 < late.weights_s <= late.backward_s
