"""What a profile times is timed where the run computes, and what a GPU has to hold is counted by who shares it; what a
cut costs is measured for every method that keeps variables at cuts, and grows with the boundary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hpcsplit.config import resolve
from hpcsplit.plan import measure
from hpcsplit.plan.measure import time_cuts
from hpcsplit.plan.setting import Setting
from hpcsplit.run.provenance import sharing
from tests.engine.far import NO_AUTOCAST, NO_CHECK, Waits
from tests.engine.small import config

FAR = torch.device("meta")
SETTING = Setting(config(2, model__name="resnet8", split__cuts=[2], data__augment=True))
PARTS: dict[str, tuple[Callable[[], Any], str]] = {  # what times it, and an operator that it is made of
    "optimizer": (lambda: measure._update_seconds(SETTING, FAR), "aten::_fused_sgd_"),
    "data": (lambda: measure._data_seconds(SETTING, 4, FAR), "aten::unfold"),
    "messages": (lambda: measure._packing_seconds(FAR), "aten::copy_"),
    "cuts": (lambda: time_cuts(SETTING, [(16, 8, 8)], FAR), "aten::pow.Tensor_Scalar"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_timed_on_the_device(part: str) -> None:
    act, operator = PARTS[part]
    assert far_away(act)[operator] >= 1 + measure.REPEATS


def test_a_profile_times_nothing_on_the_host() -> None:
    def act() -> None:
        measure.profile(SETTING, FAR, repeats=1)

    alone = sum((far_away(part) for part, _ in PARTS.values()), Counter())
    whole = far_away(act)
    assert all(whole[operator] >= alone[operator] for _, operator in PARTS.values())


def far_away(act: Callable[[], Any]) -> Counter[str]:
    """How often each operator computed on the far device."""
    waits = Waits()
    with NO_CHECK, NO_AUTOCAST, waits:
        act()
    return waits.far


def test_ranks_that_share_a_gpu_are_counted_by_the_gpu_and_not_by_its_name() -> None:
    own = [{"host": "a", "device": "cuda:0", "gpu": f"H100 {k}"} for k in range(4)]  # as with --gpus-per-task=1
    assert sharing(own) == 1
    assert sharing([*own, {"host": "b", "device": "cuda:0", "gpu": "H100 0"}]) == 1
    assert sharing([own[0], own[0], own[1]]) == 2
    assert sharing([{"host": "a", "device": "cpu", "gpu": None}] * 3) == 0


def seconds(method: dict[str, Any], shapes: list[tuple[int, ...]], **schedule: object) -> tuple[float, ...]:
    raw = {
        "data": {"name": "fake", "limit_train": 64, "batch_size": 32},
        "model": {"name": "resnet8"},
        "method": method,
        "schedule": {"epochs": 4, "ratio": "0:1", **schedule},
    }
    return tuple(join.seconds for join in time_cuts(Setting(resolve(raw)), shapes, torch.device("cpu")))


@pytest.mark.parametrize(
    "method",
    [
        {"name": "penalty"},
        {"name": "penalty", "downsample": 2},
        {"name": "al"},
        {"name": "gsadmm"},
        {"name": "gsadmm", "update": "set"},
        {"name": "gsam"},
    ],
    ids=str,
)
def test_larger_boundaries_cost_more(method: dict[str, Any]) -> None:
    large, small, again = seconds(method, [(16, 64, 64), (16, 2, 2), (16, 64, 64)])
    assert large > 2 * small > 0
    assert large == again


def test_exact_epochs_have_no_such_cost() -> None:
    assert seconds({"name": "penalty"}, [(16, 8, 8)], ratio="1:0") == ()
