"""The numbers of runs as tables: a line for each run, and comma-separated values with every digit of the records."""

from __future__ import annotations

import csv
import io

from hpcsplit.host.printable import cell
from hpcsplit.report.lines import number
from hpcsplit.report.summary import median_rate
from hpcsplit.report.times import Runs, learning_s, of_phase
from hpcsplit.run.records import flat, known

COLUMNS = ("run", "epochs", "parallel", "test accuracy", "best", "train s", "parallel samples/s", "label signal")
EXPLAINED = "train s: training and refresh; label signal: by stage, in the last parallel epoch"


def overview(runs: Runs) -> list[tuple[str, ...]]:
    """A row of COLUMNS for each run."""
    rows: list[tuple[str, ...]] = []
    for name, records in runs.items():
        parallel = of_phase(records, "parallel")
        accuracies = [accuracy for accuracy, _ in known(records, "test_accuracy")]
        signals = [s.label_signal for s in (parallel[-1].stages if parallel else ()) if s.label_signal is not None]
        rows.append(
            (
                name,
                str(len(records)),
                str(len(parallel)),
                number(accuracies[-1] if accuracies else None, ".2%"),
                number(max(accuracies, default=None), ".2%"),
                f"{sum(learning_s(record) or 0.0 for record in records):.1f}",
                number(median_rate(parallel)[0], ".0f"),
                ", ".join(f"{signal:.2f}" for signal in signals) or "-",
            )
        )
    return rows


def csv_text(runs: Runs) -> str:
    """A line for each epoch; columns are the names of flat(record), and what was not measured is empty."""
    rows = [{"run": name, **flat(record)} for name, records in runs.items() for record in records]
    columns = sorted(dict.fromkeys(key for row in rows for key in row), key=_part)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writerow({column: cell(column) for column in columns})
    writer.writerows({column: cell(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def _part(column: str) -> str:
    """What keeps the columns of a part together, whichever run has brought them: whole epochs first, stages last."""
    part = column.partition(".")[0] if "." in column else ""
    return f"{part[5:]:0>9}" if part.startswith("stage") else f" {part}" if part else ""
