"""Forward passes through all stages, a pipeline: each stage takes the next batch as soon as it has passed one on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch

from hpcsplit.engine.job import Images, Job
from hpcsplit.schedule.actions import Refresh
from hpcsplit.wire.port import NEXT, PREV, Recv, Send, Verb

Visit = Callable[[int, np.ndarray, torch.Tensor, torch.Tensor], None]


def forward_pass(
    job: Job, order: Sequence[np.ndarray], visit: Visit, *, source: Images | None = None
) -> Generator[Verb, Any, None]:
    """Run every batch through the whole network in the blocks' present mode, without gradients.

    Args:
        visit: called on every stage with (step, ids, its input, its output).
    """
    stage = job.stage
    for step, ids in enumerate(order):
        if stage.first:
            x = (job.train if source is None else source).images(ids)
        else:
            x = yield Recv(PREV, "forward", (len(ids), *stage.in_shape), stage.dtype, step)
        y = stage.infer(x)
        if not stage.last:
            yield Send(NEXT, "forward", y, step)
        visit(step, ids, x, y)


def refresh(job: Job, action: Refresh) -> Generator[Verb, Any, None]:
    """Start the auxiliary variables anew from one forward pass over the training set with evaluation statistics."""
    order = job.in_order(job.train_size)
    started = [v for v in job.own_variables() if v.start == "forward"]
    job.where = str(action)
    job.stage.blocks.eval()
    if job.store:
        for v in job.own_variables():
            if v.start == "zero":
                job.store.fill(v.name, 0.0)
        job.store.start(order, read=False)

    def keep(step: int, ids: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> None:
        if job.store:
            rows = {v.name: v.start_rows(x if v.boundary == "input" else y) for v in started}
            job.store.write(step, {**rows, **job.method.start(job.stage, x)})

    yield from forward_pass(job, order, keep)
    if job.store:
        job.store.finish(action.epoch - 1)
