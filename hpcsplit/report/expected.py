"""What was expected of runs before they began, beside what they did."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hpcsplit.run.records import EpochRecord

Expected = tuple[Mapping[str, Any], Sequence[EpochRecord]]  # forecast.json of a run, and its records


class Beside(NamedTuple):
    """One kind of epoch: seconds of a step with `batch` samples; `alone` is an exact one of one rank by itself."""

    name: str
    batch: int
    alone: float | None
    predicted: float
    measured: float


def beside(runs: Mapping[str, Expected]) -> list[str]:
    """A table of what was forecast and what was measured, a line for each run and kind of epoch that has both.

    Args:
        runs: by the names that stand before the lines.
    """
    found = [each for name, run in runs.items() for each in _kinds(name, *run)]
    if not found:
        return []
    width = max(len(each.name) for each in found)
    lines = [
        "forecast from a profile before the run, beside the run",
        f"{'':<{width}} {'batch':>6} {'step s':>9} {'measured':>9} {'ratio':>6}   "
        f"{'speed-up':>8} {'measured':>9} {'ratio':>6}",
    ]
    for each in found:
        predicted, measured = each.predicted, each.measured
        line = f"{each.name:<{width}} {each.batch:>6} {predicted:>9.4f} {measured:>9.4f} {predicted / measured:>6.2f}"
        if each.alone:
            gains = each.alone / predicted, each.alone / measured
            line += f"   {gains[0]:>8.2f} {gains[1]:>9.2f} {gains[0] / gains[1]:>6.2f}"
        lines.append(line)
    return lines


def _kinds(name: str, expected: Mapping[str, Any], records: Sequence[EpochRecord]) -> list[Beside]:
    size, found = expected["batch_size"], expected["forecast"]
    rate = expected["one_rank_samples_per_s"]
    alone, rows = size / rate if rate else None, []
    for kind, phase, key in (("exact epochs", "serial", "exact_s"), ("parallel epochs", "parallel", "parallel_s")):
        rates = [r.samples_per_s for r in records if r.phase == phase and r.samples_per_s]
        if rates:
            rows.append(Beside(f"{name} {kind}".strip(), size, alone, found[key], size / statistics.median(rates)))
    return rows
