"""The learning rate of an epoch, over serial and parallel epochs alike; the one list of its schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hpcsplit.schedule.actions import Phase

SCHEDULES: dict[str, Callable[..., float]] = {  # optim.lr_schedule -> its factor at `epoch` (from 0) of `epochs`
    "constant": lambda epoch, epochs, **_: 1.0,
    "cosine": lambda epoch, epochs, **_: 0.5 * (1.0 + math.cos(math.pi * epoch / epochs)),
    "step": lambda epoch, epochs, step, gamma, **_: gamma ** (epoch // step),
    "multistep": lambda epoch, epochs, milestones, gamma, **_: gamma ** sum(epoch >= m for m in milestones),
}


def learning_rate(
    epoch: int,
    epochs: int,
    lr: float,
    kind: str,
    *,
    step: int = 50,
    milestones: tuple[int, ...] = (),
    gamma: float = 0.1,
) -> float:
    """The learning rate of an epoch (counted from 0) in a run of `epochs`."""
    return lr * SCHEDULES[kind](epoch, epochs, step=step, milestones=milestones, gamma=gamma)


def within(epoch: int, phases: Sequence[Phase], *, restarts: bool) -> tuple[int, int]:
    """Which epoch of how many this one is for its learning rate; with `restarts` the exact epochs behind the last
    parallel one have a schedule of their own, and those before them another."""
    parallel = [number for number, phase in enumerate(phases) if phase == "parallel"]
    edge = parallel[-1] + 1 if restarts and parallel else 0
    return (epoch - edge, len(phases) - edge) if epoch >= edge else (epoch, edge)
