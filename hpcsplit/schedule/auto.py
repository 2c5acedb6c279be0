"""schedule.ratio = "auto": exact or parallel, decided epoch by epoch from what the run has recorded.

A parallel epoch does the work of w exact ones, w the mean over the stages but the last of the cosine between what a
stage was trained with and the exact gradient there (the label signal), 0 where it is negative or not measured.  The
last stage has the label itself, which says nothing of the others.  An epoch in which none of them measures any is left
out, as where delayed gradients run on into the next one.  It pays while

    w t_E > t_P,     t_E, t_P: seconds of an exact and of a parallel epoch, refresh included.

The rules, in their order; an epoch is decided while the one before it runs, by those that are finished:

1. The first epochs are exact: schedule.warmup of them, at least two.  So are the last tenth, at least one.
2. A parallel phase has three epochs at least, and begins only where three are left.  It ends when
   - w t_E < 0.9 t_P, w of the two that have measured it last (1, the most there is, before any has), t_P the mean of
     the phase, t_E the median of all exact epochs: they did less work than exact ones in the same time, or
   - the violation at the worst boundary is more than twice that after the phase's first epoch, or
   - the accuracy on the samples held out is not above the one before the phase: it gained nothing.
3. An exact phase lasts 2 epochs after the first parallel phase, 4 after the second, 8 …; then parallel is tried again.

The factor 0.9, the least lengths and the doubling keep it from changing its mind with every wobble.  Seconds decide, so
two runs of the same configuration need not have the same phases; those that were decided are in every checkpoint.
schedule.order has no say.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from hpcsplit.schedule.actions import Phase

FIRST = 2  # exact epochs
TAIL = 0.1  # of all epochs
FINISHED = 2  # parallel epochs that a judgement takes
CLEARLY = 0.9
DRIFTED = 2.0


@dataclass(frozen=True)
class Seen:
    """A finished epoch as the rules look at it."""

    phase: Phase
    seconds: float  # of training, and of the refresh before it
    score: float  # of the samples held out; more is better
    work: float | None = 1.0  # mean label signal of the stages but the last, from 0 to 1; None where none has any
    violation: float = 0.0  # at the worst boundary, 0 without one


def choose(decided: Sequence[Phase], seen: Sequence[Seen], epochs: int, warmup: int) -> tuple[Phase, str]:
    """The kind of epoch len(decided) of `epochs`, and why it is another than that of the one before, or "".  `seen` are
    the finished epochs, from the first one on; the last one decided may be under way."""
    epoch = len(decided)
    if epoch < max(FIRST, warmup):
        return "serial", ""
    lasting = decided[-1]
    if epoch >= epochs - tail(epochs):
        return "serial", f"the last {tail(epochs)} of {epochs} are exact" if lasting == "parallel" else ""
    run = len(list(takewhile(lambda phase: phase == lasting, reversed(decided))))
    if lasting == "serial":
        tries = sum(phase == "parallel" for phase, _ in groupby(decided))
        rest = 2**tries if tries else 0
        if run < rest or epochs - tail(epochs) - epoch <= FINISHED:
            return "serial", ""
        return "parallel", f"tried again after {run} exact ones" if tries else "the first exact ones are done"
    phase = seen[epoch - run :]
    if len(phase) < FINISHED:
        return "parallel", ""
    why = _does_not_pay(phase, seen[: epoch - run])
    return ("serial", why) if why else ("parallel", "")


def expected(epochs: int, warmup: int) -> tuple[Phase, ...]:
    """The phases if every parallel epoch pays."""
    decided: list[Phase] = []
    while len(decided) < epochs:
        decided.append(choose(decided, (), epochs, warmup)[0])
    return tuple(decided)


def tail(epochs: int) -> int:
    """Exact epochs at the end."""
    return max(1, math.ceil(TAIL * epochs))


def _does_not_pay(phase: Sequence[Seen], before: Sequence[Seen]) -> str:
    """Why these finished parallel epochs do not pay, or ""."""
    latest, start = phase[-FINISHED:], before[-1].score
    known = [each.work for each in (*before, *phase) if each.phase == "parallel" and each.work is not None]
    work = statistics.mean(known[-FINISHED:] or [1.0])
    exact_s = statistics.median(each.seconds for each in before if each.phase == "serial")
    parallel_s = statistics.mean(each.seconds for each in phase)
    if work * exact_s < CLEARLY * parallel_s:
        return (
            f"parallel ones do the work of {work:.2f} exact ones ({'mean' if known else 'at most, with no'} label "
            f"signal) in {parallel_s / exact_s:.2f} of the time"
        )
    first, last = phase[0].violation, latest[-1].violation
    if last > DRIFTED * first > 0:
        return f"the violation has grown from {first:.3g} to {last:.3g}"
    best = max(each.score for each in latest)
    if best <= start:
        return f"the score on the samples held out was {start:.4g} before the parallel ones and is {best:.4g}"
    return ""
