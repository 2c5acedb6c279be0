"""Which epoch of a run is its best, and when it is no use to go on: functions of the records alone.

So a run that was stopped and continued knows its best epoch, and ends after the same one, as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpcsplit.run.records import EpochRecord


def score(record: EpochRecord) -> float | None:
    """What epochs are compared by, more is better: the accuracy of the samples held out, or of the test set where there
    are none; for tasks without one, minus the loss.  None after an epoch without an evaluation."""
    held_out = record.validation_loss is not None
    accuracy = record.validation_accuracy if held_out else record.test_accuracy
    loss = record.validation_loss if held_out else record.test_loss
    value = accuracy if accuracy is not None else None if loss is None else -loss
    return value if value is not None and math.isfinite(value) else None


def best_epoch(records: Sequence[EpochRecord]) -> int | None:
    """The first epoch (from 0) with the highest score; None where none has any."""
    known = [(value, -record.epoch) for record in records if (value := score(record)) is not None]
    return -max(known)[1] if known else None


def enough(records: Sequence[EpochRecord], patience: int, min_delta: float) -> str:
    """Why the last of these epochs is to be the run's last: `patience` epochs, where that is not 0, have not improved
    the best score before them by more than `min_delta`.  "" as long as one has (Prechelt, "Early stopping, but when?",
    1998, with a fixed patience)."""
    best, at = -math.inf, None
    for record in records:
        value = score(record)
        if value is not None and (at is None or value > best + min_delta):
            best, at = value, record.epoch
    if not patience or at is None or records[-1].epoch - at < patience:
        return ""
    return (
        f"epoch {records[-1].epoch + 1} is number {patience} without a score on the samples held out that is better "
        f"than the {abs(best):.4g} of epoch {at + 1}{f' by more than {min_delta:g}' if min_delta else ''} "
        "(schedule.patience)"
    )
