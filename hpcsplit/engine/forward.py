"""Forward passes through all stages, a pipeline: each stage takes the next batch as soon as it has passed one on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

import numpy as np
import torch

from hpcsplit.engine.job import Job
from hpcsplit.schedule.actions import Refresh
from hpcsplit.tasks.task import Samples
from hpcsplit.wire.port import NEXT, PREV, Send, Verb

Visit = Callable[[int, np.ndarray, torch.Tensor, torch.Tensor], None]


def forward_pass(
    job: Job, order: Sequence[np.ndarray], visit: Visit, *, source: Samples | None = None, augment: bool = False
) -> Generator[Verb, Any, None]:
    """Run every batch through the whole network in the blocks' present mode, without gradients.

    Args:
        visit: called on every stage with (step, ids, its input, its output).
    """
    stage = job.stage
    for step, ids in enumerate(order):
        if stage.first:
            x = (job.train if source is None else source).images(ids, augment=augment)
        else:
            x = yield stage.receive(PREV, "forward", len(ids), step)
        y = stage.infer(x)
        if not stage.last:
            yield Send(NEXT, "forward", y, step)
        visit(step, ids, x, y)


def refresh(job: Job, action: Refresh, names: Collection[str] | None = None) -> Generator[Verb, Any, None]:
    """Start the auxiliary variables anew from one forward pass over the training set with evaluation statistics.

    Args:
        names: only these of this stage's variables, the others are copied to the next generation; None takes all.
    """
    order, store, own = job.in_order(job.train_size), job.store, job.own_variables()
    anew = {v.name for v in own if names is None or v.name in names}
    kept: set[str] = set()
    job.where = str(action)
    job.stage.blocks.eval()
    if store:
        for v in own:
            if v.name in anew and v.start == "zero":
                store.fill(v.name, 0.0)
        kept = {v.name for v in own} - anew - store.filled.keys()
        if kept:
            store.protect(None)  # the checkpoint's rows make room one epoch before the next checkpoint
        store.start(order, read=bool(kept))

    def keep(step: int, ids: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> None:
        if store:
            rows = {v.name: v.start_rows(x if v.boundary == "input" else y) for v in own if v.start == "forward"}
            rows |= job.method.start(job.stage, x)
            old = store.read(step) if kept else {}
            store.write(step, {n: old[n] if n in kept else rows[n] for n in kept | (rows.keys() & anew)})

    yield from forward_pass(job, order, keep)
    if store:
        store.finish(action.epoch - 1)
