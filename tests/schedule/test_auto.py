"""What the schedule that decides on the way decides, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.auto import Seen, choose, expected, tail
from hpcsplit.schedule.hybrid import initials

Course = Callable[[int, str], Seen]  # what an epoch of this number and phase will show


def course(epochs: int, show: Course, warmup: int = 0) -> tuple[str, list[str]]:
    """The phases of a whole run, each decided while the one before is under way, and the reasons that were given."""
    decided: list[Phase] = []
    reasons: list[str] = []
    for epoch in range(epochs):
        seen = [show(e, phase[0].upper()) for e, phase in enumerate(decided[: max(0, epoch - 1)])]
        phase, why = choose(decided, seen, epochs, warmup)
        decided.append(phase)
        if why:
            reasons.append(why)
    return initials(decided), reasons


def learning(parallel_s: float = 5.0, work: float | None = 1.0, violation: float = 0.1) -> Course:
    """Better with every epoch; an exact one takes 10 s."""

    def show(epoch: int, phase: str) -> Seen:
        if phase == "S":
            return Seen("serial", 10.0, float(epoch))
        return Seen("parallel", parallel_s, float(epoch), work, violation)

    return show


def test_while_parallel_epochs_pay_only_the_first_and_the_last_ones_are_exact() -> None:
    phases, reasons = course(20, learning())
    assert phases == "SS" + 16 * "P" + "SS"
    assert reasons == ["the first exact ones are done", "the last 2 of 20 are exact"]
    assert phases == initials(expected(20, 0))


def test_what_does_less_work_in_the_same_time_is_tried_ever_less_often() -> None:
    phases, reasons = course(30, learning(work=0.4))
    assert phases == "SS" + "PPP" + "SS" + "PPP" + "SSSS" + "PPP" + 13 * "S"
    assert reasons[1] == "parallel ones do the work of 0.40 exact ones (mean label signal) in 0.50 of the time"
    assert reasons[2] == "tried again after 2 exact ones"


def test_what_has_measured_nothing_does_the_work_that_was_measured_last() -> None:
    """Only the first parallel epoch measures: all phases are as short as if each one did."""
    phases, reasons = course(30, lambda epoch, phase: learning(work=0.4 if epoch == 2 else None)(epoch, phase))
    assert phases == "SS" + "PPP" + "SS" + "PPP" + "SSSS" + "PPP" + 13 * "S"
    assert reasons[3] == "parallel ones do the work of 0.40 exact ones (mean label signal) in 0.50 of the time"


def test_what_has_never_measured_anything_must_be_quicker_than_exact_epochs() -> None:
    assert "PPPP" in course(10, learning(11.0, work=None))[0]
    phases, reasons = course(10, learning(11.5, work=None))
    assert phases == "SS" + "PPP" + "SS" + "SSS"
    assert (
        reasons[1] == "parallel ones do the work of 1.00 exact ones (at most, with no label signal) in 1.15 of the time"
    )


@pytest.mark.parametrize(("work", "pays"), [(0.46, True), (0.44, False)])
def test_a_tie_changes_nothing(work: float, pays: bool) -> None:
    phases, _ = course(10, learning(work=work))
    assert ("PPPP" in phases) == pays


def test_variables_that_drift_away_end_the_phase() -> None:
    """It may double."""

    def drift(late: float) -> tuple[str, list[str]]:
        return course(12, lambda epoch, phase: learning(violation=0.1 if epoch < 5 else late)(epoch, phase))

    drifting, doubling = drift(0.3), drift(0.2)
    assert drifting[0].startswith("SSPPPPPS")
    assert "the violation has grown from 0.1 to 0.3" in drifting[1]
    assert doubling[0] == "SS" + 8 * "P" + "SS"


def test_parallel_epochs_that_gain_nothing_end_the_phase() -> None:
    def show(epoch: int, phase: str) -> Seen:
        return Seen("serial", 10.0, 60.0) if phase == "S" else Seen("parallel", 5.0, 59.0)

    phases, reasons = course(12, show)
    assert phases.startswith("SSPPPSS")
    assert "the score on the samples held out was 60 before the parallel ones and is 59" in reasons


def test_a_phase_must_gain_on_the_exact_epoch_just_before_it() -> None:
    """The second phase is better than the first exact epochs were, but not than those between the phases."""

    def show(epoch: int, phase: str) -> Seen:
        if phase == "S":
            return Seen("serial", 10.0, 50.0 if epoch > 3 else 20.0)
        return Seen("parallel", 5.0, 40.0, 1.0 if epoch > 6 else 0.1)

    _, reasons = course(16, show)
    assert "the score on the samples held out was 50 before the parallel ones and is 40" in reasons


def test_the_warm_up_may_be_longer() -> None:
    assert course(12, learning(), warmup=5)[0] == "SSSSSPPPPPSS"


@given(st.integers(1, 40), st.integers(0, 40), st.floats(0, 1), st.floats(1, 20), st.floats(0, 1))
def test_every_course_begins_and_ends_exactly(
    epochs: int, warmup: int, work: float, seconds: float, gain: float
) -> None:
    def show(epoch: int, phase: str) -> Seen:
        return Seen("serial", 10.0, gain * epoch) if phase == "S" else Seen("parallel", seconds, gain, work, gain)

    phases, _ = course(epochs, show, warmup)
    first = max(2, warmup)
    assert set(phases[:first]) == {"S"}
    assert set(phases[epochs - tail(epochs) :]) == {"S"}
    stretches = [part for part in phases[first:].split("S") if part]
    assert all(len(part) >= 3 for part in stretches)
