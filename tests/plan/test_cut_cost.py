"""What a cut costs is measured for every method that keeps variables at cuts, and grows with the boundary."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcsplit.config import resolve
from hpcsplit.plan.measure import time_cuts
from hpcsplit.plan.setting import Setting


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
