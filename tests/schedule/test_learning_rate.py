"""The learning rate of an epoch against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hpcsplit.schedule.hybrid import of_initials
from hpcsplit.schedule.learning_rate import learning_rate, within


def rates(epochs: int, kind: str, lr: float = 0.1, **options: Any) -> list[float]:
    return [learning_rate(epoch, epochs, lr, kind, **options) for epoch in range(epochs)]


def test_cosine_falls_from_lr_through_half_of_it_towards_zero() -> None:
    found = rates(8, "cosine", lr=2.0)
    assert found == pytest.approx([2.0 * math.cos(math.pi * epoch / 16) ** 2 for epoch in range(8)])
    assert found[0] == 2.0
    assert found[4] == pytest.approx(1.0)
    assert found == sorted(found, reverse=True)


def test_step_divides_by_ten_every_fifty_epochs() -> None:
    """The paper's ResNet-110: 0.1, divided by 10 every 50 of 200 epochs; other lengths and factors."""
    assert rates(200, "step") == pytest.approx([0.1] * 50 + [0.01] * 50 + [0.001] * 50 + [0.0001] * 50)
    assert rates(5, "step", lr=8.0, step=2, gamma=0.5) == [8.0, 8.0, 4.0, 4.0, 2.0]


def test_multistep_falls_at_its_milestones_in_any_order() -> None:
    for milestones in ((2, 4), (4, 2)):
        assert rates(6, "multistep", lr=8.0, milestones=milestones, gamma=0.5) == [8, 8, 4, 4, 2, 2]


def test_constant_and_multistep_without_milestones_stay() -> None:
    assert rates(5, "constant") == rates(5, "multistep") == [0.1] * 5


@pytest.mark.parametrize(
    ("initials", "places"),
    [
        ("SPPSS", [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]),
        ("SPSPS", [(0, 4), (1, 4), (2, 4), (3, 4), (0, 1)]),
        ("SPP", [(0, 3), (1, 3), (2, 3)]),
        ("SSS", [(0, 3), (1, 3), (2, 3)]),
    ],
)
def test_the_last_exact_phase_can_have_a_schedule_of_its_own(initials: str, places: list[tuple[int, int]]) -> None:
    plan = of_initials(initials)
    assert [within(epoch, plan, restarts=True) for epoch in range(len(plan))] == places
    assert all(within(epoch, plan, restarts=False) == (epoch, len(plan)) for epoch in range(len(plan)))
