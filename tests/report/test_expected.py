"""What was expected of a run stands beside what it did."""

from __future__ import annotations

from typing import Any

import pytest

from hpcsplit.report.summary import beside
from hpcsplit.run.records import EpochRecord, Phase

EXPECTED: dict[str, Any] = {
    "batch_size": 100,
    "one_rank_samples_per_s": 50.0,  # 2 s a step
    "forecast": {"exact_s": 1.6, "parallel_s": 1.0},
}


def records(*rates: tuple[Phase, float | None]) -> list[EpochRecord]:
    return [EpochRecord(i, phase, samples_per_s=rate) for i, (phase, rate) in enumerate(rates)]


def words(line: str) -> list[str]:
    return line.replace("|", " ").split()


def test_steps_and_speed_ups_are_those_of_the_median_epoch() -> None:
    found = records(("serial", 80.0), ("parallel", 99.0), ("parallel", 80.0), ("parallel", 1.0))
    *_, exact, parallel = (words(line) for line in beside({"": (EXPECTED, found)}))
    assert exact == ["exact", "epochs", "100", "1.6000", "1.2500", "1.28", "1.25", "1.60", "0.78"]
    assert parallel == ["parallel", "epochs", "100", "1.0000", "1.2500", "0.80", "2.00", "1.60", "1.25"]


@pytest.mark.parametrize("rate", [None, 100.0])
def test_what_was_not_measured_is_left_out(rate: float | None) -> None:
    lines = beside({"": (EXPECTED | {"one_rank_samples_per_s": None}, records(("parallel", rate)))})
    assert [words(line) for line in lines[3:]] == (
        [["parallel", "epochs", "100", "1.0000", "1.0000", "1.00"]] if rate else []
    )
    assert bool(lines) == bool(rate)


def test_several_runs_are_one_table() -> None:
    found = records(("parallel", 100.0))
    lines = beside({"one": (EXPECTED, found), "another": (EXPECTED, found)})
    assert [words(line)[:3] for line in lines[3:]] == [
        ["one", "parallel", "epochs"],
        ["another", "parallel", "epochs"],
    ]
    assert len({len(line) for line in lines[1:]}) == 1
