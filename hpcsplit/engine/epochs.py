"""One training epoch of one stage: exact, or parallel with the rows of the auxiliary variables moved around the steps.

In a parallel epoch the rows of batch s + 1 are read, and the neighbour's copies of them sent, before batch s computes:
sample ids within an epoch are disjoint, so nothing that batch s writes can be missed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from typing import Any

import torch

from hpcsplit.engine.job import Job
from hpcsplit.errors import NumericalError
from hpcsplit.methods.contract import Step, Tally, TrainingMethod, Variable
from hpcsplit.schedule.actions import Train
from hpcsplit.terms.resample import cells
from hpcsplit.wire.port import NEXT, PREV, Recv, Send, Verb

Rows = dict[str, torch.Tensor]


def train_epoch(job: Job, action: Train) -> Generator[Verb, Any, Tally]:
    """Train one epoch and return what its steps have added up to."""
    job.stage.set_lr(job.learning_rate(action.epoch))
    job.stage.blocks.train()
    if action.phase == "serial":
        return (yield from _serial(job, action))
    return (yield from _parallel(job, action, job.method.at(action.parallel_epochs)))


def _serial(job: Job, action: Train) -> Generator[Verb, Any, Tally]:
    total, started = Tally(), time.perf_counter()
    order = job.epoch_batches(action.epoch)
    for step, ids in enumerate(order):
        _enter(job, action, step, len(order))
        result = yield from job.exact.step(job.stage, {}, job.batch(ids, epoch=action.epoch, augment=job.augment))
        _leave(job, action, step, len(order), result.tally, total, started)
    return total


def _parallel(job: Job, action: Train, method: TrainingMethod) -> Generator[Verb, Any, Tally]:
    total, sweeps = Tally(), method.sweeps()
    for number, step in enumerate(sweeps, start=1):
        total.samples = 0  # every sweep visits the same ones
        total.add((yield from _sweep(job, action, step, last=number == len(sweeps))))
    total.terms |= method.close(job.stage)
    return total


def _sweep(job: Job, action: Train, method_step: Callable[..., Step], *, last: bool) -> Generator[Verb, Any, Tally]:
    """One pass over all mini-batches; the last one of an epoch writes the new rows."""
    total, started = Tally(), time.perf_counter()
    order = job.epoch_batches(action.epoch, parallel=True)
    if job.store:
        job.store.start(order, write=last)
    upcoming = yield from _fetch(job, 0)
    for step, ids in enumerate(order):
        _enter(job, action, step, len(order))
        rows = upcoming
        if step + 1 < len(order):
            upcoming = yield from _fetch(job, step + 1)
        copies = yield from receive_copies(job, len(ids), step)
        result = yield from method_step(job.stage, rows | copies, job.batch(ids, epoch=action.epoch))
        _leave(job, action, step, len(order), result.tally, total, started)
        if job.store and last:
            job.store.write(step, result.aux)
    if job.store:
        job.store.finish(action.epoch)
    return total


def _fetch(job: Job, step: int) -> Generator[Verb, Any, Rows]:
    """Read the rows of a batch and send the neighbours their copies."""
    rows: Rows = {}
    if job.store:
        rows = {name: t.to(job.stage.device, non_blocking=True) for name, t in job.store.read(step).items()}
        yield from send_copies(job, rows, step)
    return rows


def send_copies(job: Job, rows: Rows, index: int) -> Generator[Verb, Any, None]:
    """Give the neighbours that compute with our variables the rows of one batch, in the store's own (lossless) type."""
    for v in job.own_variables():
        if v.copy_to is not None:
            yield Send(v.copy_to, _copy_name(v), rows[v.name].to(job.aux_dtype), index)


def receive_copies(job: Job, size: int, index: int) -> Generator[Verb, Any, Rows]:
    """The neighbours' rows of one batch, as "next_<name>" and "prev_<name>"."""
    copies: Rows = {}
    for v in job.method.variables(job.stage.place):
        for side, label, has_peer in ((NEXT, "next", not job.stage.last), (PREV, "prev", not job.stage.first)):
            if v.copy_to == -side and has_peer:
                boundary = job.stage.out_shape if side == NEXT else job.stage.in_shape  # the one that we share
                shape = (size, *cells(boundary, v.factor))
                copies[f"{label}_{v.name}"] = (yield Recv(side, _copy_name(v), shape, job.aux_dtype, index)).float()
    return copies


def _copy_name(v: Variable) -> str:
    return f"copy_{v.name}"


def _enter(job: Job, action: Train, step: int, steps: int) -> None:
    job.where = f"{action}, step {step + 1} of {steps}"
    job.stage.at(action.epoch, step)


def _leave(job: Job, action: Train, step: int, steps: int, tally: Tally, total: Tally, started: float) -> None:
    for term, value in tally.terms.items():
        if not math.isfinite(value):
            place = f"epoch {action.epoch + 1} ({action.phase}), step {step + 1}, stage {job.stage.index}"
            raise NumericalError(
                f"{term} = {value} in {place}: training has diverged. Lower optim.lr or method.beta, set optim.clip; "
                "the last checkpoint is whole"
            )
    total.add(tally)
    elapsed = time.perf_counter() - started
    job.observer.progress(action.epoch, action.phase, step + 1, steps, total.samples / elapsed)
