"""Does each stage learn?  One mini-batch compares what the method uses with exact back-propagation.

At a stage's output the exact per-sample gradient is g*; the method puts a = c (x − λ) + κ (or its counterpart) there,
at its own x = f_k(λ_k).  Reported are the cosine of a and g*, ‖a‖ / ‖g*‖ and the norm of the penalty part of a, over
the mini-batch; how much of a the type of the stored rows rounds away, ‖δa‖ / ‖a‖ for errors of δ evenly spread within
half a step of it; and the relative violation ‖λ − x‖ / ‖λ‖ of the stored λ against the exact activation.  A method
that keeps no variables from epoch to epoch is asked for those of the epoch's last mini-batch, or, where it has none at
all, what it has used there (on the last micro-batch, if there are several): the output that it passed on takes the
place of λ, the gradient that came back that of a.

A parallel epoch is compared with what the next one will use: its coefficients, and the variables' new start where the
method begins them anew before it.

An exact epoch is compared with the variables as the parallel epochs before it have left them.  Their rows of the
mini-batch are in the stage's `carry`, so that a run which is continued there, without a store, measures the same.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hpcsplit.engine.epochs import Rows, receive_copies, send_copies
from hpcsplit.engine.forward import back, first_rows, forth
from hpcsplit.engine.job import Job
from hpcsplit.methods.contract import Aux, Compared, Makes, Uses
from hpcsplit.schedule.actions import Train
from hpcsplit.schedule.timetable import slices
from hpcsplit.stage.stage import Stage
from hpcsplit.wire.port import Verb

_EPOCH = "epoch"  # the parallel epoch that has left them; on every stage or on none


@dataclass(frozen=True)
class Signals:
    """What one stage found on the probe mini-batch; None where there is nothing to compare."""

    label_signal: float | None = None
    label_ratio: float | None = None
    penalty_signal: float | None = None
    violation_next: float | None = None  # of the boundary behind this stage
    rounding: float | None = None


def probe(job: Job, action: Train) -> Generator[Verb, Any, Signals]:
    """Measure the signals of this stage after an epoch; weights, statistics and gradients stay as they were."""
    job.where = "probe of the label signal"
    stage, method = job.stage, job.method.at(action.parallel_epochs + action.goes_on)
    stage.blocks.train()
    if job.has_variables or action.phase == "serial":
        batch = job.batch(job.measured()[0])
    else:
        last = job.epoch_batches(action.epoch, parallel=True)[-1]
        piece = slices(len(last), method.microbatches)[-1]  # BatchNorm normalises over it
        whole = job.batch(last, **job.view(action.phase, action.epoch))
        batch = replace(whole, ids=last[piece], size=len(last[piece]), x=whole.x[piece], y=whole.y[piece])

    x, y = yield from forth(stage, batch)
    exact, g = yield from back(stage, x, y, batch)
    aux: Aux = {}
    if job.has_variables:
        rows = _rows(job, action, batch.ids)
        if rows and action.goes_on and method.restarts(action.parallel_epochs + 1):
            rows = {name: torch.zeros_like(old) for name, old in rows.items()}
            rows |= first_rows(job, x.detach(), y.detach(), g)
        if rows is not None:
            yield from send_copies(job, rows, 0)
            aux = rows | (yield from receive_copies(job, batch.size, 0))
    elif action.phase == "parallel" and isinstance(method, Makes):
        aux = yield from method.made(stage, batch)
    if not aux and isinstance(method, Uses) and (used := method.used(stage)):
        output, gradient = used[0].float(), used[1].float()
        return Signals(*_alike(gradient, exact.float()), None, _violation(output, y.detach().float()))
    if stage.last:
        return Signals(1.0, 1.0)
    if not aux:
        return Signals()
    assert isinstance(method, Compared)  # as the decorator has seen to
    result = _compare(stage, method, aux, x.detach(), y.detach().float(), exact.float(), job.aux_dtype)
    return result if job.has_variables else replace(result, rounding=None)


def _rows(job: Job, action: Train, ids: Any) -> Rows | None:
    """This stage's variables of these samples; None, on every stage, where no epoch has been parallel."""
    kept = job.stage.carry.stage.below("probe.")
    if action.phase == "serial":
        return {name: t for name, t in kept.items() if name != _EPOCH} if _EPOCH in kept else None
    rows = job.store.peek(ids) if job.store else {}
    rows = {name: t.to(job.stage.device) for name, t in rows.items()}
    kept.clear()
    if not (action.goes_on or action.last):
        kept.update(rows, epoch=torch.tensor(action.epoch))
    return rows


def _compare(
    stage: Stage, method: Compared, aux: Aux, x_in: Tensor, x_out: Tensor, exact: Tensor, stored: torch.dtype
) -> Signals:
    own_input = x_in if stage.first else method.local_input(stage, aux)
    with torch.no_grad():
        with stage.statistics_kept():
            local = stage.forward(own_input).float()
        used, penalty = method.adjoint(stage, aux, local)
        target = method.target(stage, aux)
        steps = {name: t + _step(t.float(), stored) for name, t in aux.items() if name.startswith("next_")}
        error = float((method.adjoint(stage, {**aux, **steps}, local)[0] - used).norm()) / math.sqrt(12)
        rounding = error / float(used.norm()) if used.any() else None
        return Signals(*_alike(used, exact), float(penalty.norm()), _violation(target, x_out), rounding)


def _step(values: Tensor, dtype: torch.dtype) -> Tensor:
    """From each value to the next one that `dtype` has."""
    kind, (_, exponent) = torch.finfo(dtype), torch.frexp(values)
    return (kind.eps * torch.exp2(exponent - 1)).clamp_min(kind.smallest_normal * kind.eps)


def _alike(used: Tensor, exact: Tensor) -> tuple[float, float | None]:
    """Cosine, and ‖used‖ / ‖exact‖."""
    norm_used, norm_exact = float(used.norm()), float(exact.norm())
    cosine = float((used * exact).sum()) / (norm_used * norm_exact) if norm_used and norm_exact else 0.0
    return cosine, norm_used / norm_exact if norm_exact else None


def _violation(target: Tensor, x_out: Tensor) -> float:
    return float((target - x_out).norm() / target.norm().clamp_min(1e-30))
