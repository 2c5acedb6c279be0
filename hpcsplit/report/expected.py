"""What was expected of runs before they began, beside what they did."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hpcsplit.report.table import table
from hpcsplit.run.records import EpochRecord, known

Expected = tuple[Mapping[str, Any], Sequence[EpochRecord]]  # forecast.json of a run, and its records
KINDS = (("exact epochs", "serial", "exact_s"), ("parallel epochs", "parallel", "parallel_s"))


def beside(runs: Mapping[str, Expected]) -> list[str]:
    """A table of what was forecast and what was measured, a line for each run and kind of epoch that has both.

    Times are those of a step (s); a speed-up is over an exact step of one rank by itself.

    Args:
        runs: by the names that stand before the lines.
    """
    rows = []
    for name, (expected, records) in runs.items():
        size, alone = expected["batch_size"], expected["one_rank_samples_per_s"]
        for kind, phase, key in KINDS:
            rates = [rate for rate, _ in known((r for r in records if r.phase == phase), "samples_per_s") if rate]
            if rates:
                predicted, measured = expected["forecast"][key], size / statistics.median(rates)
                row = [f"{name} {kind}".strip(), str(size), f"{predicted:.4f}", f"{measured:.4f}"]
                row.append(f"{predicted / measured:.2f}")
                gains = [size / alone / seconds for seconds in (predicted, measured)] if alone else []
                rows.append(row + [f"{value:.2f}" for value in (*gains, measured / predicted) if gains])
    columns = ("", "batch", "step s", "measured", "ratio", "speed-up", "measured", "ratio")
    lines = ["forecast from a profile before the run, beside the run", *table(columns, rows).splitlines()]
    return lines if rows else []
