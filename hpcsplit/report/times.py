"""Where the time of a run went: parts of the seconds that its records have."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from hpcsplit.run.records import EpochRecord, StageRecord

Runs = Mapping[str, Sequence[EpochRecord]]  # by the names that the reader sees

PARTS = {
    "compute_s": "computing",
    "exposed_comm_s": "exposed messages",
    "exposed_io_s": "exposed I/O",
    "imbalance_s": "imbalance",
}
OTHER, REFRESH, EVALUATION, CHECKPOINT = "other training", "refresh", "evaluation", "checkpoint"
UNSPLIT = "evaluation and checkpoint"  # of records that do not tell them apart


def rest_s(record: EpochRecord) -> float | None:
    """What an epoch took besides training and refresh: evaluation, measurements, and the checkpoint before it."""
    if record.wall_s is None or record.train_s is None:
        return None
    return record.wall_s - record.train_s - (record.refresh_s or 0.0)


def learning_s(record: EpochRecord) -> float | None:
    """What an epoch took to learn: training and refresh."""
    return None if record.train_s is None else record.train_s + (record.refresh_s or 0.0)


def stage_parts(stages: Iterable[StageRecord]) -> dict[str, float]:
    """Seconds of one stage over its epochs, by part."""
    sums = dict.fromkeys(PARTS.values(), 0.0)
    for stage in stages:
        for key, name in PARTS.items():
            sums[name] += getattr(stage, key) or 0.0
    return sums


def run_parts(records: Sequence[EpochRecord]) -> dict[str, float]:
    """Seconds of a whole run, by part; those within training are means over the stages.

    Stages that take turns in one process wait for each other: that is other training.
    """
    timed = [record for record in records if record.train_s is not None]
    parts = dict.fromkeys(PARTS.values(), 0.0)
    for record in timed:
        each = [stage_parts([stage]) for stage in record.stages]
        for name in parts if each else ():
            parts[name] += statistics.mean(found[name] for found in each)
    other = sum(record.train_s or 0.0 for record in timed) - sum(parts.values())
    parts |= {OTHER: max(0.0, other), REFRESH: sum(record.refresh_s or 0.0 for record in timed)}
    rest = sum(rest_s(record) or 0.0 for record in timed)
    known = [record.checkpoint_s for record in timed if record.checkpoint_s is not None]
    if len(known) < len(timed):
        return parts | {UNSPLIT: max(0.0, rest)}
    return parts | {EVALUATION: max(0.0, rest - sum(known)), CHECKPOINT: sum(known)}


def balance(record: EpochRecord) -> float | None:
    """The computing of the quickest stage over that of the slowest; None with one stage."""
    seconds = [stage.compute_s for stage in record.stages if stage.compute_s is not None]
    return min(seconds) / max(seconds) if len(seconds) > 1 and max(seconds) > 0 else None
