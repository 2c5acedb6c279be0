"""The runs that are struck: a small residual network on random patterns, two serial and four parallel epochs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcsplit.run.records import Records

CUTS = {1: [], 2: [2], 3: [2, 3], 4: [1, 2, 3]}
EPOCHS = 6
STALL_LIMIT_S = 9.0  # more than the ranks of a start may come apart on a busy machine
_TOML = """
[data]
name = "fake"
pool = true
limit_train = 64
limit_test = 32
batch_size = 16
eval_train = 32

[model]
name = "resnet8"

[split]
cuts = {cuts}

[method]
name = "penalty"

[schedule]
epochs = {epochs}
ratio = "1:2"

[checkpoint]
aux = "copy"
keep = 2
every_minutes = 0.01

[run]
threads = 1
device = "cpu"
baseline = false
stall_limit = {stall}
"""


@dataclass(frozen=True)
class Outcome:
    """What a run has left: its records, without times and memory."""

    records: list[dict[str, Any]]

    @classmethod
    def of(cls, run_dir: Path) -> Outcome:
        return cls([record.learned() for record in Records(run_dir / "records.jsonl").load()])

    def complete(self) -> bool:
        """Each epoch once, in order."""
        return [record["epoch"] for record in self.records] == list(range(EPOCHS))

    def differs(self, other: Outcome) -> str:
        """Where this one is another than `other`, or ""."""
        if len(self.records) != len(other.records):
            return f"{len(self.records)} records, not {len(other.records)}"
        pairs = zip(self.records, other.records, strict=True)
        keys = [f"{key} of epoch {b['epoch']}" for a, b in pairs for key in b if a.get(key) != b[key]]
        return f"other {', '.join(keys[:4])}" if keys else ""


def write_config(path: Path, stages: int) -> Path:
    """The configuration for this number of stages, at `path`."""
    text = _TOML.format(cuts=json.dumps(CUTS[stages]), epochs=EPOCHS, stall=f"{STALL_LIMIT_S / 60:.4f}")
    path.write_text(text, encoding="utf-8")
    return path
