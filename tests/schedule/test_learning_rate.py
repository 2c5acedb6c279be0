"""The learning rate of every step against its formula, and against torch's own schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as torchs

from hpcsplit.config import resolve
from hpcsplit.errors import ConfigError
from hpcsplit.schedule.hybrid import of_initials
from hpcsplit.schedule.learning_rate import LearningRate


def rates(epochs: int, kind: str, lr: float = 0.1, phases: str = "", steps: int = 1, **options: Any) -> list[float]:
    """Of every step of a run."""
    rate = LearningRate(lr, kind, of_initials(phases or "S" * epochs), **options)
    return [rate(epoch, step, steps) for epoch in range(epochs) for step in range(steps)]


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


# ------------------------------------------------------------------------------------------------ beside torch


EPOCHS, STEPS, ALL = 6, 5, 30
Scheduler = Callable[[torch.optim.Optimizer], torchs.LRScheduler]
SCHEDULERS: dict[str, tuple[dict[str, Any], Scheduler]] = {
    "cosine": ({}, lambda o: torchs.CosineAnnealingLR(o, ALL)),
    "linear": ({}, lambda o: torchs.LinearLR(o, 1.0, 0.0, ALL)),
    "polynomial": ({"power": 2.5}, lambda o: torchs.PolynomialLR(o, ALL, 2.5)),
    "onecycle": ({}, lambda o: torchs.OneCycleLR(o, 0.1, ALL, cycle_momentum=False)),
    "step": ({"step": 2, "gamma": 0.5}, lambda o: torchs.StepLR(o, 2 * STEPS, 0.5)),
    "multistep": ({"milestones": (1, 4)}, lambda o: torchs.MultiStepLR(o, [STEPS, 4 * STEPS])),
    "constant": ({}, lambda o: torchs.ConstantLR(o, 1.0)),
}


def of_torch(make: Scheduler, count: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, found = make(optimizer), []
    for _ in range(count):
        found.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_rate_of_every_step_is_torchs(kind: str) -> None:
    options, make = SCHEDULERS[kind]
    assert rates(EPOCHS, kind, steps=STEPS, by_step=True, **options) == pytest.approx(of_torch(make, ALL), abs=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "linear", "polynomial", "onecycle"])
def test_by_epoch_it_is_torchs_of_as_many_steps_as_epochs(kind: str) -> None:
    options, make = SCHEDULERS[kind]
    by_epoch = rates(ALL, kind, steps=3, **options)
    assert by_epoch[::3] == by_epoch[1::3] == by_epoch[2::3] == pytest.approx(of_torch(make, ALL), abs=1e-12)


def test_a_warm_up_and_a_cosine_behind_it_are_torchs_one_after_the_other() -> None:
    def make(optimizer: torch.optim.Optimizer) -> torchs.LRScheduler:
        parts = [torchs.LinearLR(optimizer, 1 / 10, 1.0, 9), torchs.CosineAnnealingLR(optimizer, 20)]
        return torchs.SequentialLR(optimizer, parts, [10])

    found = rates(EPOCHS, "cosine", steps=STEPS, by_step=True, warmup=2.0)
    assert found == pytest.approx(of_torch(make, ALL), abs=1e-12)
    assert found[0] == pytest.approx(0.1 / 10)


def test_a_warm_up_can_be_a_part_of_an_epoch_and_rises_by_steps_where_the_rest_goes_by_epochs() -> None:
    assert rates(2, "constant", lr=1.0, steps=4, warmup=0.5) == [0.5] + [1.0] * 7
    assert rates(2, "constant", lr=1.0, steps=3, warmup=0.5) == pytest.approx([1 / 1.5] + [1.0] * 5)
    found = rates(4, "linear", lr=1.0, steps=2, warmup=1.0)
    assert found == pytest.approx([1 / 2, 1.0, 1.0, 1.0, 2 / 3, 2 / 3, 1 / 3, 1 / 3])
    falls = rates(4, "multistep", lr=1.0, steps=2, warmup=1.0, milestones=(2,), gamma=0.5)
    assert falls == [0.5, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]


def test_a_warm_up_as_long_as_the_run_rises_to_its_end() -> None:
    assert rates(2, "cosine", lr=1.0, steps=2, warmup=2.0, by_step=True) == [0.25, 0.5, 0.75, 1.0]


# ------------------------------------------------------------------------------------------------ phases


@pytest.mark.parametrize(
    ("initials", "begins", "places"),
    [
        ("SPPSS", "restart", [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]),
        ("SPSPS", "restart", [(0, 4), (1, 4), (2, 4), (3, 4), (0, 1)]),
        ("SPP", "restart", [(0, 3), (1, 3), (2, 3)]),
        ("SSS", "restart", [(0, 3), (1, 3), (2, 3)]),
        ("SPPSP", "each", [(0, 1), (0, 2), (1, 2), (0, 1), (0, 1)]),
        ("SSPP", "each", [(0, 2), (1, 2), (0, 2), (1, 2)]),
        ("PP", "each", [(0, 2), (1, 2)]),
        ("SPPSS", "run", [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]),
    ],
)
def test_phases_can_have_a_schedule_of_their_own(initials: str, begins: str, places: list[tuple[int, int]]) -> None:
    count = len(initials)
    by_epoch = rates(count, "linear", lr=1.0, phases=initials, begins=begins)
    assert by_epoch == pytest.approx([1 - Fraction(t, total) for t, total in places])
    by_step = rates(count, "linear", lr=1.0, phases=initials, begins=begins, steps=2, by_step=True)
    wanted = [1 - Fraction(2 * t + step, 2 * total) for t, total in places for step in (0, 1)]
    assert by_step == pytest.approx(wanted)
    falls = rates(count, "step", lr=1.0, phases=initials, begins=begins, step=2, gamma=0.5)
    assert falls == [0.5 ** (t // 2) for t, _ in places]


def test_a_warm_up_comes_once_however_often_the_schedule_begins() -> None:
    found = rates(4, "linear", lr=1.0, phases="SSPP", begins="each", steps=2, by_step=True, warmup=1.0)
    assert found == [0.5, 1.0, 1.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    longer = rates(3, "linear", lr=1.0, phases="SPP", begins="each", warmup=2.0)
    assert longer == [0.5, 1.0, 1.0]


def test_epochs_with_more_steps_go_as_far() -> None:
    """A parallel epoch may have more visits than an exact one has steps."""
    rate = LearningRate(1.0, "cosine", of_initials("SP"), by_step=True)
    assert rate(1, 3, 6) == rate(1, 1, 2) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))


@pytest.mark.parametrize(
    ("optim", "schedule", "sentence"),
    [
        ({"lr_warmup": 11}, {}, r"optim\.lr_warmup = 11 is more than schedule\.epochs = 10"),
        ({"lr_warmup": 1, "lr_schedule": "onecycle"}, {}, r"onecycle rises by itself.*leave lr_warmup out"),
        ({"lr_schedule": "onecycle"}, {"epochs": 3}, r'onecycle.*set optim\.lr_steps = "step"'),
        ({"lr_schedule": "onecycle"}, {"lr_phases": "each"}, r'onecycle.*set optim\.lr_steps = "step"'),
        ({"lr_power": 0}, {}, r"optim\.lr_power = 0\.0 must be greater than 0"),
        ({"lr_schedule": "exponential"}, {}, r"not one of constant, cosine, .*onecycle"),
    ],
)
def test_what_makes_no_schedule_is_refused(optim: dict[str, Any], schedule: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve({"optim": optim, "schedule": schedule})
    resolve({"optim": {"lr_schedule": "onecycle", "lr_steps": "step"}, "schedule": {"epochs": 1}})
