"""The records of runs as one table of comma-separated values: a line for each epoch, every digit of the records."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

from hpcsplit.host.printable import cell
from hpcsplit.report.curves import Runs
from hpcsplit.run.records import EpochRecord


def csv_text(runs: Runs) -> str:
    """Columns are the keys of a record, those of its parts with their place: terms.phi, stage1.violation.

    Epochs count from 1, as everywhere for the reader; what was not measured is empty.
    """
    rows = [{"run": name, **_flat(record)} for name, records in runs.items() for record in records]
    columns = sorted(dict.fromkeys(key for row in rows for key in row), key=_part)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writerow({column: cell(column) for column in columns})
    writer.writerows({column: cell(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def _flat(record: EpochRecord) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    values["epoch"] += 1
    stages, terms, theorem = (values.pop(key) for key in ("stages", "terms", "theorem"))
    values |= {f"terms.{name}": value for name, value in (terms or {}).items()}
    for name, value in (theorem or {}).items():
        parts = {f"{name}.{k}": each for k, each in enumerate(value, 1)} if isinstance(value, list) else {name: value}
        values |= {f"theorem.{key}": each for key, each in parts.items()}
    for stage in stages:
        number = stage.pop("stage")
        values |= {f"stage{number}.{key}": value for key, value in stage.items()}
    return values


def _part(column: str) -> str:
    """What keeps the columns of a part together, whichever run has brought them: whole epochs first, stages last."""
    part = column.partition(".")[0] if "." in column else ""
    return f"{part[5:]:0>9}" if part.startswith("stage") else f" {part}" if part else ""
