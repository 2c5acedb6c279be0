"""How many samples a run passes through the network at once, and why."""

from __future__ import annotations

import numpy as np

from hpcsplit.assemble import batch_size, batch_sizes, epoch_samples, sizes
from hpcsplit.config import Config
from hpcsplit.data.order import batches
from hpcsplit.engine.job import FORWARD_ROWS
from hpcsplit.stage.timetable import slices


def training_sizes(config: Config) -> dict[int, str]:
    """The mini-batches that a run has in training mode, and where they come from."""
    samples, most = epoch_samples(config), batch_size(config)
    cures = "another data.batch_size"
    if config.data.last_batch == "keep":
        cures = f'data.last_batch = "join" or {cures}'
    whole = set(batch_sizes(config))
    found = {most: f"data.batch_size is {most}"}
    for size in whole - {most}:
        found[size] = f"the last of the mini-batches of {most} that {samples} samples make has {size}: set {cures}"
    pieces = {"schedule": config.schedule.microbatches, "method": config.method.options.get("microbatches", 1)}
    for section, number in pieces.items():
        for size in sorted(whole, reverse=True):
            for piece in {part.stop - part.start for part in slices(size, number)}:
                found.setdefault(
                    piece,
                    f"of {number} micro-batches of a mini-batch of {size} one has {piece}: lower "
                    f"{section}.microbatches, or set {cures}",
                )
    measured = batches(np.arange(samples), min(most, FORWARD_ROWS), config.data.last_batch)
    for ids in measured:
        found.setdefault(
            len(ids),
            f"of {samples} samples, {min(most, FORWARD_ROWS)} at a time, that BatchNorm statistics are taken of, "
            f"{len(ids)} are left: set {cures}",
        )
    return found


def evaluation_sizes(config: Config) -> dict[int, str]:
    """The mini-batches that only go forward."""
    train, test = sizes(config)
    few = min(train, config.data.eval_train or train)
    kinds = {"training": epoch_samples(config), "test": test, "evaluated training": few}
    kinds |= {"held-out": config.data.validation}
    most, last = min(batch_size(config), FORWARD_ROWS), "keep" if config.data.last_batch == "keep" else "join"
    cure = ': set data.last_batch = "join"' if last == "keep" else ""
    return {
        len(ids): f"of {number} {kind} samples, {most} at a time, there are {len(ids)} at the end{cure}"
        for kind, number in kinds.items()
        for ids in batches(np.arange(number), most, last)
    }
