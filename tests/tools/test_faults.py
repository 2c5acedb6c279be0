"""What tools/faults takes for the same run: whole records, but for times and memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcsplit.run.records import EpochRecord, Records, StageRecord
from tools.campaigns.runs import Learned, difference, learned

STAGE = StageRecord(0, 0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 3.0, 4.0, 4096, 1 << 20)
EPOCH = EpochRecord(0, "serial", loss=1.5, wall_s=9.0, train_s=8.0, terms={"phi": 1.0}, stages=(STAGE,))


def outcome(place: Path, record: EpochRecord) -> Learned:
    place.mkdir()
    Records(place / "records.jsonl").append(record)
    return learned(place)


def test_a_record_differs_by_all_but_times_and_memory(tmp_path: Path) -> None:
    usual = outcome(tmp_path / "usual", EPOCH)
    slower = replace(STAGE, compute_s=7.0, exposed_comm_s=7.0, exposed_io_s=7.0, imbalance_s=7.0, peak_rss_bytes=7)
    late = replace(EPOCH, wall_s=7.0, train_s=7.0, refresh_s=7.0, checkpoint_s=7.0, samples_per_s=7.0, stages=(slower,))
    assert difference(outcome(tmp_path / "late", late), usual) == ""
    changes: list[dict[str, Any]] = [
        {"loss": 2.0},
        {"terms": {"phi": 2.0}},
        {"recomputed": True},
        *({"stages": (replace(STAGE, **{key: 99}),)} for key in ("violation", "penalty_signal", "sent_bytes")),
    ]
    for number, change in enumerate(changes):
        other = outcome(tmp_path / str(number), replace(EPOCH, **change))
        assert difference(other, usual) == f"other {next(iter(change))} of epoch 0"
    assert difference([], usual) == "0 records, not 1"
