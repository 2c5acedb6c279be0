"""Runs side by side in a line each: the table that `report` prints and that opens its page."""

from __future__ import annotations

from collections.abc import Sequence

from hpcsplit.report.curves import Runs
from hpcsplit.report.summary import median_rate
from hpcsplit.report.times import learning_s
from hpcsplit.run.records import EpochRecord

COLUMNS = ("run", "epochs", "parallel", "test accuracy", "best", "train s", "parallel samples/s", "label signal")
EXPLAINED = "train s: training and refresh; label signal: by stage, in the last parallel epoch"


def overview(runs: Runs) -> list[tuple[str, ...]]:
    """A row of COLUMNS for each run."""
    return [(name, *_row(records)) for name, records in runs.items()]


def _row(records: Sequence[EpochRecord]) -> tuple[str, ...]:
    parallel = [r for r in records if r.phase == "parallel"]
    accuracies = [r.test_accuracy for r in records if r.test_accuracy is not None]
    speed, _ = median_rate(parallel)
    last = parallel[-1].stages if parallel else ()
    signals = [f"{stage.label_signal:.2f}" for stage in last if stage.label_signal is not None]
    return (
        str(len(records)),
        str(len(parallel)),
        f"{accuracies[-1]:.2%}" if accuracies else "-",
        f"{max(accuracies):.2%}" if accuracies else "-",
        f"{sum(learning_s(r) or 0.0 for r in records):.1f}",
        f"{speed:.0f}" if speed else "-",
        ", ".join(signals) or "-",
    )
