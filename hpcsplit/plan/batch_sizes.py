"""How many samples a run passes through the network at once, and why."""

from __future__ import annotations

import numpy as np

from hpcsplit.data.order import batches
from hpcsplit.engine.job import FORWARD_ROWS
from hpcsplit.plan.setting import Setting
from hpcsplit.schedule.timetable import slices


def training_sizes(setting: Setting) -> dict[int, str]:
    """The mini-batches that a run has in training mode, and where they come from."""
    config, samples, most = setting.config, setting.epoch_samples, setting.batch_size
    cures = "another data.batch_size"
    if config.data.last_batch == "keep":
        cures = f'data.last_batch = "join" or {cures}'
    whole = set(setting.batch_sizes)
    result = {most: f"data.batch_size is {most}"}
    for size in whole - {most}:
        result[size] = f"the last of the mini-batches of {most} that {samples} samples make has {size}: set {cures}"
    pieces = {"schedule": config.schedule.microbatches, "method": setting.method.microbatches}
    for section, number in pieces.items():
        for size in sorted(whole, reverse=True):
            for piece in {part.stop - part.start for part in slices(size, number)}:
                result.setdefault(
                    piece,
                    f"of {number} micro-batches of a mini-batch of {size} one has {piece}: lower "
                    f"{section}.microbatches, or set {cures}",
                )
    measured = batches(np.arange(samples), min(most, FORWARD_ROWS), config.data.last_batch)
    for ids in measured:
        result.setdefault(
            len(ids),
            f"of {samples} samples, {min(most, FORWARD_ROWS)} at a time, that BatchNorm statistics are taken of, "
            f"{len(ids)} are left: set {cures}",
        )
    return result


def evaluation_sizes(setting: Setting) -> dict[int, str]:
    """The mini-batches that only go forward."""
    kinds = {"training": setting.epoch_samples, "test": setting.test_size}
    kinds |= {"evaluated training": setting.eval_train_size, "held-out": setting.config.data.validation}
    most = min(setting.batch_size, FORWARD_ROWS)
    last = "keep" if setting.config.data.last_batch == "keep" else "join"
    cure = ': set data.last_batch = "join"' if last == "keep" else ""
    return {
        len(ids): f"of {number} {kind} samples, {most} at a time, there are {len(ids)} at the end{cure}"
        for kind, number in kinds.items()
        for ids in batches(np.arange(number), most, last)
    }
