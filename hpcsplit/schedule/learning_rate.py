"""The learning rate of every step, over serial and parallel epochs alike; the one list of its schedules.

It is a function of where a run is: a run that is stopped and continued has the same one.  A schedule gives a factor of
optim.lr after `t` of `total` steps, or of epochs where it changes from epoch to epoch only.  torch's schedulers of the
same names give the same factors (tests/schedule/test_learning_rate.py); "onecycle" is torch's OneCycleLR with its
defaults: from lr / 25 up to lr in 0.3 of all steps and down to lr / 250,000, both along a cosine (Smith and Topin,
"Super-Convergence", 2018), except that the momentum stays as it is.

A warm-up rises in equal parts from the first step on (Goyal et al., "Accurate, Large Minibatch SGD", 2017).  "cosine",
"linear" and "polynomial" begin behind it; the epochs of "step" and "multistep" count from the run's beginning.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from hpcsplit.schedule.actions import Phase

_RISE, _FIRST, _LAST = 0.3, 1 / 25, 1 / 250_000  # OneCycleLR: pct_start, 1 / div_factor, and that / final_div_factor


def _onecycle(t: float, total: float, **_: object) -> float:
    top, end = _RISE * total - 1, total - 1
    if t <= top:
        return _between(_FIRST, 1.0, t / top)
    return _between(1.0, _LAST, (t - top) / (end - top))


def _between(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))


SCHEDULES: dict[str, Callable[..., float]] = {  # optim.lr_schedule -> its factor after t of `total`
    "constant": lambda t, total, **_: 1.0,
    "cosine": lambda t, total, **_: 0.5 * (1.0 + math.cos(math.pi * t / total)),
    "linear": lambda t, total, **_: 1.0 - t / total,
    "polynomial": lambda t, total, power, **_: (1.0 - t / total) ** power,
    "onecycle": _onecycle,
}
FALLS: dict[str, Callable[..., float]] = {  # those that change at whole epochs: their factor in `epoch`
    "step": lambda epoch, step, gamma, **_: gamma ** (epoch // step),
    "multistep": lambda epoch, milestones, gamma, **_: gamma ** sum(epoch >= m for m in milestones),
}


KINDS = (*SCHEDULES, *FALLS)


@dataclass(frozen=True)
class LearningRate:
    """optim.lr and the keys that begin with lr_, in a run whose epochs have these `phases`.

    Attributes:
        by_step: the schedule goes on with every step, not with every epoch.
        warmup: epochs in which the rate rises.
        begins: where a schedule begins anew (schedule.lr_phases): nowhere ("run"), with the exact epochs behind the
            last parallel one ("restart"), or at every switch of phase ("each").
    """

    lr: float
    kind: str
    phases: Sequence[Phase]
    by_step: bool = False
    warmup: float = 0.0
    step: int = 50
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    power: float = 1.0
    begins: str = "run"

    @property
    def moves(self) -> bool:
        """Whether it may change within an epoch."""
        return self.by_step or self.warmup > 0

    def __call__(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """That of a step of an epoch of so many; epochs and steps count from 0."""
        place = bisect(self._edges, epoch)
        begin, end = self._edges[place - 1], (*self._edges, len(self.phases))[place]
        if fall := FALLS.get(self.kind):
            factor = fall(epoch - begin, step=self.step, milestones=self.milestones, gamma=self.gamma)
        else:
            unit, within = (steps, step) if self.by_step else (1, 0)
            first = unit * max(begin, self.warmup or 0)  # a whole number without a warm-up
            t, total = max(0, unit * epoch + within - first), unit * end - first
            factor = SCHEDULES[self.kind](t, total, power=self.power) if total > 0 else 1.0
        warm = min(1.0, (epoch * steps + step + 1) / (self.warmup * steps)) if self.warmup else 1.0
        return self.lr * factor * warm

    @cached_property
    def _edges(self) -> tuple[int, ...]:
        """The epochs with which a schedule begins."""
        switches = [number for number, (a, b) in enumerate(pairwise(self.phases), 1) if a != b]
        exact_end = switches[-1:] if self.phases and self.phases[-1] == "serial" else []
        return (0, *{"run": [], "restart": exact_end, "each": switches}[self.begins])
