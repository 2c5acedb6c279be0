"""What every campaign has of a run: its configuration, what it has learned, and how it is continued to its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcsplit.errors import DONE, REQUEUE
from hpcsplit.run.records import Records
from tools.program import Sections, last_line, merged, write_toml

Learned = list[dict[str, Any]]  # the records of a run, without times and memory

_BASE: Sections = {
    "data": {"name": "fake", "pool": True, "limit_train": 64, "limit_test": 32, "batch_size": 16, "eval_train": 32},
    "model": {"name": "resnet8"},
    "split": {"cuts": [2]},
    "method": {"name": "penalty"},
    "schedule": {"epochs": 6, "ratio": "1:2"},
    "run": {"threads": 1, "device": "cpu", "baseline": False},
}


def write_config(path: Path, **settings: dict[str, Any]) -> Path:
    """The configuration of a small residual network on random patterns with these settings over it, at `path`."""
    return write_toml(path, merged(_BASE, settings))


def learned(run_dir: Path) -> Learned:
    return [record.learned() for record in Records(run_dir / "records.jsonl").load()]


def difference(found: Learned, expected: Learned) -> str:
    """Where records are others than expected, or ""."""
    if len(found) != len(expected):
        return f"{len(found)} records, not {len(expected)}"
    pairs = zip(found, expected, strict=True)
    keys = [f"{key} of epoch {b['epoch']}" for a, b in pairs for key in b if a.get(key) != b[key]]
    return f"other {', '.join(keys[:4])}" if keys else ""


def continued(
    start: Callable[[int], tuple[int, str, str]], code: int, run_dir: Path, expected: Learned, most: int
) -> tuple[int, str]:
    """Start the same command until it is done, at most so many times.

    Args:
        start: told which start it is, from 2 on, returns its exit code, what it said, and what nothing excuses, or "".

    Returns:
        How many starts there were, and what is wrong, or "": they did not end well, or have not learned `expected`.
    """
    starts = 1
    while code != DONE:
        if starts > most:
            return starts, f"not done after {starts} starts"
        starts += 1
        code, said, trouble = start(starts)
        if trouble:
            return starts, f"start {starts} did not end well: {trouble}"
        if code not in (DONE, REQUEUE):
            return starts, f"start {starts} ended with {code}: {last_line(said)}"
    return starts, difference(learned(run_dir), expected)
