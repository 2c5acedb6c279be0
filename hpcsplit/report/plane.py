"""The plane of accuracy and time: what each run had reached after how many seconds of learning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from hpcsplit.report.curves import colour_of
from hpcsplit.report.figure import Panel
from hpcsplit.report.times import Runs, learning_s
from hpcsplit.run.records import EpochRecord


def points(records: Sequence[EpochRecord]) -> list[tuple[float, float]]:
    """Seconds of training and refresh since the start, and test accuracy in %, after each epoch that has both.

    An epoch of unknown length ends the list: nobody knows how late the next ones are.
    """
    seconds = [learning_s(record) for record in records]
    known = seconds.index(None) if None in seconds else len(seconds)
    times = accumulate(each for each in seconds[:known] if each is not None)
    reached = [record.test_accuracy for record in records[:known]]
    return [(time, 100 * value) for time, value in zip(times, reached, strict=True) if value is not None]


def is_exact(records: Sequence[EpochRecord]) -> bool:
    """Whether a run has been back-propagation alone so far."""
    return all(record.phase == "serial" for record in records)


def plane(runs: Runs) -> list[Panel]:
    """A line for each run with its end marked; exact ones are dashed, the line that a method must be above."""
    lines = {name: points(records) for name, records in runs.items()}

    def draw(panel: Any) -> list[Any]:
        legend = []
        for place, (name, line) in enumerate(lines.items()):
            if line:
                colour, exact = colour_of(place, len(runs)), is_exact(runs[name])
                label, style = (f"{name} (exact)", "--") if exact else (name, "-")
                legend += panel.plot(*zip(*line, strict=True), style, color=colour, marker=".", label=label)
                panel.plot(*line[-1], "o", color=colour, markersize=7)
        panel.set(xlabel="training and refresh (s)", ylabel="test accuracy (%)", xlim=(0, None))
        panel.grid(alpha=0.3)
        return legend

    return [Panel(draw)] if any(lines.values()) else []
