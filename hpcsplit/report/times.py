"""Where the time of a run went: parts of the seconds that its records have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpcsplit.run.records import EpochRecord, StageRecord

Runs = Mapping[str, Sequence[EpochRecord]]  # by the names that the reader sees

PARTS = {
    "compute_s": "computing",
    "exposed_comm_s": "exposed messages",
    "exposed_io_s": "exposed I/O",
    "exposed_data_s": "exposed data",
    "imbalance_s": "imbalance",
}
OTHER, REFRESH, EVALUATION, CHECKPOINT = "other training", "refresh", "evaluation", "checkpoint"
ALL = (*PARTS.values(), OTHER, REFRESH, EVALUATION, CHECKPOINT)
UNSPLIT = f"{EVALUATION} and {CHECKPOINT}"  # of records that do not tell them apart


def of_phase(records: Sequence[EpochRecord], phase: str) -> list[EpochRecord]:
    """The epochs of one kind."""
    return [record for record in records if record.phase == phase]


def rest_s(record: EpochRecord) -> float | None:
    """What an epoch took besides training and refresh: evaluation, measurements, and the checkpoint before it."""
    if record.wall_s is None or record.train_s is None:
        return None
    return record.wall_s - record.train_s - (record.refresh_s or 0.0)


def learning_s(record: EpochRecord) -> float | None:
    """What an epoch took to learn: training and refresh."""
    return None if record.train_s is None else record.train_s + (record.refresh_s or 0.0)


def stage_parts(stages: Sequence[StageRecord]) -> dict[str, float]:
    """Seconds of one stage over its epochs, by part."""
    return {name: sum(getattr(stage, key) or 0.0 for stage in stages) for key, name in PARTS.items()}


def run_parts(records: Sequence[EpochRecord]) -> dict[str, float]:
    """Seconds of a whole run, by part; those within training are means over the stages.

    Stages that take turns in one process wait for each other: that is other training.
    """
    timed = [record for record in records if record.train_s is not None]
    each = [(stage_parts(record.stages), len(record.stages)) for record in timed if record.stages]
    parts = {name: sum(sums[name] / count for sums, count in each) for name in PARTS.values()}
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
