"""The serial-parallel hybrid schedule (DS-SPH section 3.2) as an iterator of actions.

With γ = s : p, warm-up epochs count as serial epochs of the total; epochs that fill no whole cycle of s + p are serial.
Eleven epochs of 1:4, S serial and P parallel:

    alternate        S PPPP S PPPP S        (Fig. 8; the warm-up is the first S)
    parallel-first   S PPPPPPPP SS          (Fig. 9)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from hpcsplit.schedule.actions import Action, Phase, Refresh, Save, Stop, Train, Trained

ELSEWHERE = "another rank has been told to stop"
ALL_DONE = "all epochs are done"


def phases(epochs: int, serial: int, parallel: int, order: str, warmup: int) -> tuple[Phase, ...]:
    """The kind of every epoch for the ratio serial : parallel."""
    exact: list[Phase] = ["serial"]
    split: list[Phase] = ["parallel"]
    if parallel == 0:
        return tuple(exact * epochs)
    if serial == 0:
        return tuple(exact * warmup + split * (epochs - warmup))
    cycles = epochs // (serial + parallel)
    p_left = cycles * parallel
    s_left = epochs - p_left - warmup
    if order == "parallel-first":
        return tuple(exact * warmup + split * p_left + exact * s_left)
    missing = min(max(serial - warmup, 0), s_left)
    plan = exact * (warmup + missing)
    s_left -= missing
    while p_left:
        plan += split * parallel
        p_left -= parallel
        count = min(serial, s_left) if p_left else s_left
        plan += exact * count
        s_left -= count
    return tuple(plan + exact * s_left)  # some are left where the epochs fill no cycle at all


def initials(plan: Sequence[Phase]) -> str:
    """Two exact and three parallel epochs are SSPPP."""
    return "".join(phase[0].upper() for phase in plan)


def of_initials(text: str) -> list[Phase]:
    """What `initials` wrote."""
    return ["parallel" if letter == "P" else "serial" for letter in text]


@dataclass(frozen=True)
class SavePolicy:
    """When a checkpoint is due."""

    every_epochs: int
    every_minutes: float
    aux: str  # copy | keep | recompute

    def due(self, epoch: int, minutes_since_last: float, aux_referred: bool) -> bool:
        overwritten = self.aux == "keep" and aux_referred  # the generation that an older checkpoint refers to
        counted = bool(self.every_epochs) and (epoch + 1) % self.every_epochs == 0
        return overwritten or counted or self.clock_due(60 * minutes_since_last)

    def clock_due(self, seconds_since_last: float) -> bool:
        """Whether the clock alone asks for a checkpoint."""
        return bool(self.every_minutes) and seconds_since_last >= 60 * self.every_minutes


def actions(
    plan: Sequence[Phase],
    save: SavePolicy,
    *,
    epochs: int = 0,
    choose: Callable[[Sequence[Phase]], Phase] | None = None,
    told: bool = False,
    best: Callable[[int], bool] = lambda epoch: False,
    enough: Callable[[], str] = lambda: "",
    first_epoch: int = 0,
    first_step: int = 0,
    have_aux: bool = False,
    missing_aux: bool = False,
    recomputed: bool = False,
    no_aux: bool = False,
    stop_reason: Callable[[], str | None] = lambda: None,
    restarts: Callable[[int], bool] = lambda parallel_epoch: False,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Action, Trained | None, None]:
    """Everything that is left to do from step `first_step` of `first_epoch` on.  Send it how each `Train` ended.

    Args:
        plan: the kind of every epoch, or of the first ones of `epochs`.
        choose: the kind of the epoch behind these.  It is asked when the epoch before that begins, so the records that
            it may look at end with the one before that.
        told: checkpoints keep the kinds of epochs that are decided.
        best: whether this epoch, which has been trained, is the best so far, whose checkpoint is kept.
        enough: asked before the first epoch and after each; a text ends the run as one that is done.
        have_aux: the auxiliary variables of the last parallel epoch are at hand, with `missing_aux` only some of them.
        recomputed: they had been computed anew in this parallel phase already.
        no_aux: the method has no auxiliary variables.
        stop_reason: asked after every epoch; a text ends the run after a checkpoint.
        restarts: whether the auxiliary variables start anew before this parallel epoch in any case.
    """
    kinds = list(plan)
    epochs = epochs or len(kinds)

    def keeps(epoch: int) -> bool:
        return kinds[epoch] == "parallel" and not no_aux

    def anew(epoch: int) -> bool:
        before = kinds[:epoch]
        return keeps(epoch) and (before[-1:] != ["parallel"] or restarts(before.count("parallel")))

    saved_at = clock()
    if not first_step and first_epoch < epochs and (why := enough()):
        yield Stop(True, why)
        return
    for epoch in range(first_epoch, epochs):
        while choose and len(kinds) < min(epoch + 2, epochs):
            kinds.append(choose(kinds))
        decided = initials(kinds) if told or choose else ""
        ended = epoch + 1 == epochs
        goes_on = kinds[epoch : epoch + 2] == ["parallel", "parallel"]
        split = keeps(epoch)
        step = first_step if epoch == first_epoch else 0
        switch = anew(epoch) and not step
        if switch or (split and (missing_aux or not have_aux)):
            recomputed = not switch
            yield Refresh(epoch, recomputed, missing_aux and have_aux and not switch)
            have_aux, missing_aux = True, False
        marked = recomputed and split
        while True:
            trained = yield Train(epoch, kinds[epoch], kinds[:epoch].count("parallel"), marked, step, goes_on, ended)
            assert trained is not None
            if not trained.step:
                break
            step = trained.step
            yield Save(epoch, split, step, marked, decided)
            saved_at = clock()
            if trained.stop:
                yield Stop(False, stop_reason() or ELSEWHERE)
                return
        aux_needed = split and not ended and keeps(epoch + 1) and not anew(epoch + 1)
        # Also behind the last epoch of a phase: the checkpoint before it still refers to a generation.
        aux_referred = aux_needed or (split and (not switch or step > 0))
        reason = None if ended else stop_reason() or (ELSEWHERE if trained.stop else None)
        found, why = best(epoch), "" if ended else enough()
        if ended or reason or why or found or save.due(epoch, (clock() - saved_at) / 60, aux_referred):
            yield Save(epoch, aux_needed, 0, marked and aux_needed, decided, found)
            saved_at = clock()
        if why:
            yield Stop(True, why)
            return
        if reason:
            yield Stop(False, reason)
            return
    yield Stop(True, ALL_DONE)
