"""Passes that train nothing, a pipeline: each stage takes the next batch as soon as it has passed one on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any

import numpy as np
import torch

from hpcsplit.engine.job import Job
from hpcsplit.methods.contract import Batch
from hpcsplit.schedule.actions import Refresh
from hpcsplit.schedule.timetable import slices, timetable
from hpcsplit.stage.stage import Stage
from hpcsplit.tasks.task import Samples
from hpcsplit.wire.port import NEXT, PREV, Send, Verb

Visit = Callable[[int, np.ndarray, torch.Tensor, torch.Tensor], None]
VisitBack = Callable[[int, np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor], None]


def forward_pass(
    job: Job, order: Sequence[np.ndarray], visit: Visit, *, source: Samples | None = None, augment: bool = False
) -> Generator[Verb, Any, None]:
    """Run every batch through the whole network in the blocks' present mode, without gradients, and `visit` every stage
    with (step, ids, its input, its output)."""
    stage = job.stage
    job.expect(order, source, augment=augment)
    for step, ids in enumerate(order):
        if stage.first:
            x = (job.train if source is None else source).images(ids, augment=augment)
        else:
            x = yield stage.receive(PREV, "forward", len(ids), step)
        y = stage.infer(x)
        if not stage.last:
            yield Send(NEXT, "forward", y, step)
        visit(step, ids, x, y)


def pass_back(job: Job, order: Sequence[np.ndarray], visit: VisitBack) -> Generator[Verb, Any, None]:
    """Run every batch of training samples forward and back, in the blocks' present mode; weights and statistics stay.
    `visit` every stage with (step, ids, its input, its output, the samples' gradients at its input, empty on the first
    stage)."""
    stage, under_way = job.stage, dict[int, tuple[Batch, torch.Tensor, torch.Tensor]]()
    job.expect(order)
    for kind, step in timetable("1f1b", stage.index, stage.count, len(order)):
        if kind == "F":
            batch = job.batch(order[step])
            under_way[step] = batch, *(yield from forth(stage, batch, step))
        else:
            batch, x, y = under_way.pop(step)
            _, g = yield from back(stage, x, y, batch, step)
            visit(step, batch.ids, x.detach(), y.detach(), g)


def forth(stage: Stage, batch: Batch, index: int = 0) -> Generator[Verb, Any, tuple[torch.Tensor, torch.Tensor]]:
    """Pass one mini-batch on; the stage's input and its output, with the graph between them."""
    x = batch.x if stage.first else (yield stage.receive(PREV, "forward", batch.size, index))
    x = x.detach().requires_grad_(x.is_floating_point())
    with stage.statistics_kept():
        y = stage.forward(x)
    if not stage.last:
        yield Send(NEXT, "forward", y.detach(), index)
    return x, y


def back(
    stage: Stage, x: torch.Tensor, y: torch.Tensor, batch: Batch, index: int = 0
) -> Generator[Verb, Any, tuple[torch.Tensor, torch.Tensor]]:
    """Pass the exact gradients of each sample alone back; those at the stage's output and at its input, empty on the
    first stage."""
    if stage.last:
        (at_output,) = torch.autograd.grad(stage.loss(y, batch.y).sum(), y, retain_graph=True)
    else:
        at_output = yield stage.receive(NEXT, "adjoint", batch.size, index)
    if stage.first:
        return at_output, torch.empty(0)
    (at_input,) = torch.autograd.grad(y, x, at_output)
    yield Send(PREV, "adjoint", at_input, index)
    return at_output, at_input


def first_rows(job: Job, x: torch.Tensor, y: torch.Tensor, g: torch.Tensor) -> dict[str, torch.Tensor]:
    """Where this stage's variables start that do not start at 0, from its exact inputs x, (B, *in_shape), its outputs y
    and the gradients g at x of each sample alone."""
    activations = {"input": x, "output": y}
    rows = {v.name: v.start_rows(activations[str(v.boundary)]) for v in job.own_variables() if v.start == "forward"}
    return rows | dict(job.method.first_rows(job.stage, x, g))


def refresh(job: Job, action: Refresh, names: Collection[str] | None = None) -> Generator[Verb, Any, None]:
    """Start the auxiliary variables anew from one pass over the training set: forward with evaluation statistics, or
    forward and back as in an exact step where the method asks for it.  With `names` only these of this stage's
    variables are new, and the others are copied to the next generation."""
    order, store, own = job.in_order(job.train_size), job.store, job.own_variables()
    if back := job.method.starts_with_adjoint:
        order = [ids[piece] for ids in order for piece in slices(len(ids), job.exact.microbatches)]
    anew = {v.name for v in own if names is None or v.name in names}
    kept: set[str] = set()
    job.where = str(action)
    job.stage.blocks.train(back)
    job.stage.at(action.epoch, 0)
    if store:
        for v in own:
            if v.name in anew and v.start == "zero":
                store.fill(v.name, 0.0)
        kept = {v.name for v in own} - anew - store.filled.keys()
        if kept:
            store.protect(None)  # the checkpoint's rows make room one epoch before the next checkpoint
        store.start(order, read=bool(kept))

    def keep(step: int, ids: np.ndarray, x: torch.Tensor, y: torch.Tensor, g: torch.Tensor) -> None:
        if store:
            rows = first_rows(job, x, y, g)
            old = store.read(step) if kept else {}
            store.write(step, {n: old[n] if n in kept else rows[n] for n in kept | (rows.keys() & anew)})

    if back:
        yield from pass_back(job, order, keep)
    else:
        yield from forward_pass(job, order, lambda step, ids, x, y: keep(step, ids, x, y, torch.empty(0)))
    if store:
        store.finish(action.epoch - 1)
