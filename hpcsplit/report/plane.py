"""The plane of accuracy and time: what each run had reached after how many seconds of learning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from hpcsplit.report.curves import Runs, colour_of, sample
from hpcsplit.report.times import learning_s
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


def plane(panel: Any, runs: Runs) -> list[Any]:
    """A line for each run with its end marked; exact ones are dashed, the line that a method must be above."""
    legend = []
    for place, (name, records) in enumerate(runs.items()):
        if not (found := points(records)):
            continue
        colour, style = colour_of(place, len(runs)), "--" if is_exact(records) else "-"
        panel.plot(*zip(*found, strict=True), style, color=colour, marker=".", linewidth=1.5)
        panel.plot(*found[-1], "o", color=colour, markersize=7)
        legend.append(sample(f"{name} (exact)" if is_exact(records) else name, colour, style))
    panel.set_xlabel("training and refresh (s)")
    panel.set_ylabel("test accuracy (%)")
    panel.set_xlim(left=0)
    panel.grid(alpha=0.3)
    return legend
