"""One training epoch of one stage: exact, or parallel with the rows of the auxiliary variables moved around the steps.

In a parallel epoch the rows of batch s + 1 are read, and the neighbour's copies of them sent, before batch s computes:
sample ids within an epoch are disjoint, so nothing that batch s writes can be missed.

After each step the ranks agree, without waiting, whether to pause: for a checkpoint or to stop.  All of them then leave
the epoch after the same step; steps count through all sweeps of an epoch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch

from hpcsplit.config.option import cures, options_of
from hpcsplit.engine.job import Job
from hpcsplit.errors import NumericalError
from hpcsplit.host.device import upload
from hpcsplit.methods.contract import InFlight, Iterates, Step, Tally, sweeps
from hpcsplit.schedule.actions import Train
from hpcsplit.store.store import Store
from hpcsplit.terms.resample import cells
from hpcsplit.wire.port import NEXT, PREV, Agree, Recv, Send, Verb, agree_lag

Rows = dict[str, torch.Tensor]
Batches = Sequence[np.ndarray]
Passes = Sequence[Callable[..., Step]]


def train_epoch(job: Job, action: Train, total: Tally) -> Generator[Verb, Any, int]:
    """Train one epoch, or what is left of it, and add its steps to `total`; the step after which the ranks have agreed
    to pause, 0 at the epoch's end."""
    job.stage.blocks.train()
    job.stage.defers = job.exact.defers(job.stage.count)
    method, parallel = job.method.at(action.parallel_epochs), action.phase == "parallel"
    order, passes = _course(job, action)
    steps = len(passes) * len(order)
    job.stage.rate = (lambda epoch, step: job.learning_rate(epoch, step, steps)) if job.learning_rate.moves else None
    begun, first = divmod(action.first_step, len(order))
    for number in range(begun, len(passes)):
        if not first:
            total.samples = 0  # every sweep visits the same ones
        if paused := (yield from _sweep(job, action, order, passes, number, total, first)):
            return number * len(order) + paused
        first = 0
    if parallel and isinstance(method, InFlight):
        yield from method.drain(job.stage, goes_on=action.goes_on)
    if parallel and isinstance(method, Iterates):
        total.terms |= method.close(job.stage)
    return 0


def _course(job: Job, action: Train) -> tuple[Batches, Passes]:
    """The mini-batches of an epoch, and the passes over all of them."""
    parallel = action.phase == "parallel"
    passes = sweeps(job.method.at(action.parallel_epochs)) if parallel else (job.exact.step,)
    return job.epoch_batches(action.epoch, parallel=parallel), passes


def last_rate(job: Job, action: Train) -> float:
    """The learning rate of an epoch's last step."""
    order, passes = _course(job, action)
    steps = len(passes) * len(order)
    return job.learning_rate(action.epoch, steps - 1, steps)


def _sweep(
    job: Job, action: Train, order: Batches, passes: Passes, number: int, total: Tally, first: int
) -> Generator[Verb, Any, int]:
    """Pass `number` over the mini-batches from `first` on; the last one of a parallel epoch writes the new rows."""
    last, parallel = number + 1 == len(passes), action.phase == "parallel"
    loop = _Loop(job, action, len(order), total, first, number * len(order), len(passes) * len(order))
    store, copies = job.store if parallel else None, Rows()
    if store:
        store.start(order, first=first, write=last)
    augment = job.augments(action.phase)
    job.expect(order[first:], epoch=action.epoch, augment=augment)
    upcoming = yield from _fetch(job, store, first)
    for step in range(first, len(order)):
        loop.enter(step)
        rows = upcoming
        if step + 1 < len(order):
            upcoming = yield from _fetch(job, store, step + 1)
        if parallel:
            copies = yield from receive_copies(job, len(order[step]), step)
        batch = job.batch(order[step], **job.view(action.phase, action.epoch))
        result = yield from passes[number](job.stage, rows | copies, batch)
        loop.leave(step, result.tally)
        if store and last:
            store.write(step, result.aux)
        if (yield from loop.pauses(step)):
            if parallel and isinstance(job.method, InFlight):
                yield from job.method.settle(job.stage)
            if parallel:
                yield from receive_copies(job, len(order[step + 1]), step + 1)  # on their way; they will be sent again
            if store:
                store.pause(action.epoch)
            return step + 1
    if store:
        store.finish(action.epoch)
    return 0


def _fetch(job: Job, store: Store | None, step: int) -> Generator[Verb, Any, Rows]:
    """Read the rows of a batch and send the neighbours their copies."""
    rows = {name: upload(t, job.stage.device) for name, t in store.read(step).items()} if store else {}
    if store:
        yield from send_copies(job, rows, step)
    return rows


def send_copies(job: Job, rows: Rows, index: int) -> Generator[Verb, Any, None]:
    """Give the neighbours that compute with our variables the rows of one batch, in the store's own (lossless) type."""
    for v in job.own_variables():
        if v.copy_to is not None:
            yield Send(v.copy_to, f"copy_{v.name}", rows[v.name].to(job.aux_dtype), index)


def receive_copies(job: Job, size: int, index: int) -> Generator[Verb, Any, Rows]:
    """The neighbours' rows of one batch, as "next_<name>" and "prev_<name>"."""
    copies: Rows = {}
    for v in job.method.variables(job.stage.place):
        for side, label, has_peer in ((NEXT, "next", not job.stage.last), (PREV, "prev", not job.stage.first)):
            if v.copy_to == -side and has_peer:
                boundary = job.stage.out_shape if side == NEXT else job.stage.in_shape  # the one that we share
                shape = (size, *cells(boundary, v.factor))
                copies[f"{label}_{v.name}"] = (yield Recv(side, f"copy_{v.name}", shape, job.aux_dtype, index)).float()
    return copies


def copied_bytes(job: Job, action: Train, step: int) -> int:
    """What this stage sends its neighbours of the rows of one step of such an epoch; they are on their way already
    when the epoch pauses before that step, and will be sent again."""
    if action.phase == "serial":
        return 0
    order = job.epoch_batches(action.epoch, parallel=True)
    copied = [v.row_shape(job.stage.place) for v in job.own_variables() if v.copy_to is not None]
    return len(order[step % len(order)]) * job.aux_dtype.itemsize * sum(map(math.prod, copied))


class _Loop:
    """What surrounds each step of a pass over `steps` mini-batches that begins with number `first`; `before` steps of
    the epoch's `all_steps` are those of passes before it."""

    def __init__(
        self, job: Job, action: Train, steps: int, total: Tally, first: int, before: int, all_steps: int
    ) -> None:
        self.job, self.action, self.steps, self.total = job, action, steps, total
        self.before, self.all_steps = before, all_steps
        self.settled = first + agree_lag(job.stage.count)  # before that, an answer is one to the pass before
        self.reported: deque[tuple[int, Callable[[], Tally]]] = deque()  # of steps that are not counted yet
        self.lag = 0 if job.stage.device.type == "cpu" else 1  # a GPU computes while the step before is counted
        self.began, self.done_before = time.perf_counter(), total.samples

    def enter(self, step: int) -> None:
        self.job.where = f"{self.action}, step {step + 1} of {self.steps}"
        self.job.stage.at(self.action.epoch, step)
        self.job.stage.ends = step + 1 == self.steps
        self.job.stage.set_lr(self.job.learning_rate(self.action.epoch, self.before + step, self.all_steps))

    def leave(self, step: int, tally: Tally) -> None:
        action = self.action
        self.reported.append((step, tally.numbers()))
        while len(self.reported) > self.lag * (step + 1 < self.steps):
            self._count()
        speed = (self.total.samples - self.done_before) / (time.perf_counter() - self.began)
        self.job.observer.progress(action.epoch, action.phase, step + 1, self.steps, speed)

    def pauses(self, step: int) -> Generator[Verb, Any, bool]:
        """Whether all ranks leave the pass after this step; never after the last one, where the epoch ends anyway."""
        level = yield Agree(self.job.request())
        if not (level > 0 and self.settled <= step < self.steps - 1):
            return False
        while self.reported:
            self._count()
        return True

    def _count(self) -> None:
        """Add up what the oldest step has reported."""
        step, read = self.reported.popleft()
        tally, action = read(), self.action
        for term, value in tally.terms.items():
            if not math.isfinite(value):
                place = f"epoch {action.epoch + 1} ({action.phase}), step {step + 1}, stage {self.job.stage.index}"
                own = options_of(type(self.job.method)) if action.phase == "parallel" else ()
                raise diverged(f"{term} = {value} in {place}", cures(own, "divergence"))
        self.total.add(tally)


def diverged(what: str, own: Sequence[str] = ()) -> NumericalError:
    """What to raise where a number is none any more; `own` are the method's cures."""
    cure = ", ".join(["Lower optim.lr", *own, "or set optim.clip"])
    return NumericalError(f"{what}: training has diverged. {cure}; the last checkpoint is whole")
