"""What every campaign has of a run: its configuration, its start, its outcome, and how it is continued to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcsplit.errors import DONE, REQUEUE
from hpcsplit.run.records import Records
from tools.program import Sections, last_line, merged, write_toml

_BASE: Sections = {
    "data": {"name": "fake", "pool": True, "limit_train": 64, "limit_test": 32, "batch_size": 16, "eval_train": 32},
    "model": {"name": "resnet8"},
    "split": {"cuts": [2]},
    "method": {"name": "penalty"},
    "schedule": {"epochs": 6, "ratio": "1:2"},
    "run": {"threads": 1, "device": "cpu", "baseline": False},
}


def write_config(path: Path, settings: Sections) -> Path:
    """The configuration of a small residual network on random patterns with these settings over it, at `path`."""
    return write_toml(path, merged(_BASE, settings))


@dataclass(frozen=True)
class Outcome:
    """What a run has left: its records, without times and memory."""

    records: list[dict[str, Any]]

    @classmethod
    def of(cls, run_dir: Path) -> Outcome:
        return cls([record.learned() for record in Records(run_dir / "records.jsonl").load()])

    def weights(self) -> list[tuple[int, str | None]]:
        """(epoch, hash of the weights after it), in order."""
        return [(record["epoch"], record["weights_sha256"]) for record in self.records]

    def differs(self, other: Outcome) -> str:
        """Where this one is another than `other`, or ""."""
        if len(self.records) != len(other.records):
            return f"{len(self.records)} records, not {len(other.records)}"
        pairs = zip(self.records, other.records, strict=True)
        keys = [f"{key} of epoch {b['epoch']}" for a, b in pairs for key in b if a.get(key) != b[key]]
        return f"other {', '.join(keys[:4])}" if keys else ""


@dataclass(frozen=True)
class Again:
    """How one more start of the same command went; `trouble`: what nothing excuses, or ""."""

    code: int
    said: str
    trouble: str = ""


def continued(start: Callable[[int], Again], code: int, run_dir: Path, expected: Outcome, most: int) -> tuple[int, str]:
    """Start the same command until it is done, at most so many times; `start` is told which start it is, from 2 on.

    Returns:
        How many starts there were, and what is wrong, or "": they did not end well, or the outcome is not `expected`.
    """
    starts = 1
    while code != DONE:
        if starts > most:
            return starts, f"not done after {starts} starts"
        starts += 1
        again = start(starts)
        code = again.code
        if again.trouble:
            return starts, f"start {starts} did not end well: {again.trouble}"
        if code not in (DONE, REQUEUE):
            return starts, f"start {starts} ended with {code}: {last_line(again.said)}"
    return starts, Outcome.of(run_dir).differs(expected)
