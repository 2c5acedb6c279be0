"""The order in which a stage takes the micro-batches of an exact step, and the course of a pipeline of such stages.

GPipe (Huang et al. 2019) takes all forward passes, then all backward ones.  1F1B (PipeDream-Flush, Narayanan et al.
2021) goes backward as soon as it can: the step takes as long, but stage k of K keeps the activations of K - k
micro-batches at most, where GPipe keeps all M.  ZB is 1F1B with 2(K - k) - 1 of them, as many as ZB-H2 (Qi et al.,
"Zero Bubble Pipeline Parallelism", 2023): where weight gradients wait, forward passes are there to fill what is left of
the bubble.  All go backward in the order of the micro-batches, so that gradients add up to the same bits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

Order = Literal["1f1b", "gpipe", "zb"]
ORDERS: tuple[Order, ...] = get_args(Order)


class Work(NamedTuple):
    """One pass of one micro-batch through a stage: "F", forward, or "B", backward; "W", its weight gradients."""

    kind: Literal["F", "B", "W"]
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}"


def slices(size: int, microbatches: int) -> list[slice]:
    """The micro-batches of a mini-batch of `size` samples, none of them empty."""
    edges = [m * size // microbatches for m in range(microbatches + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def in_flight(order: Order, stage: int, stages: int, microbatches: int) -> int:
    """Forward passes before the first backward one: so many micro-batches' activations a stage keeps at most."""
    most = {"gpipe": microbatches if stages > 1 else 1, "1f1b": stages - stage, "zb": 2 * (stages - stage) - 1}
    return min(most[order], microbatches)


def timetable(order: Order, stage: int, stages: int, microbatches: int) -> list[Work]:
    """What stage number `stage` does in one step, in order."""
    ahead = in_flight(order, stage, stages, microbatches)
    works = [Work("F", m) for m in range(ahead)]
    for m in range(microbatches):
        works.append(Work("B", m))
        if ahead + m < microbatches:
            works.append(Work("F", ahead + m))
    return works


def unawaited(stage: int, works: Sequence[Work]) -> set[int]:
    """The micro-batches whose backward pass no stage waits for: on the first one, after its last forward pass.  Nothing
    is gained where such a pass leaves its weight gradients for later."""
    last = max(i for i, work in enumerate(works) if work.kind == "F")
    return {work.microbatch for work in works[last:] if work.kind == "B"} if stage == 0 else set()


def waiting(stage: int, works: Sequence[Work], most: int = 0) -> int:
    """Of how many micro-batches the weight gradients wait at most when a stage that defers them goes on: `most`, or
    where it is 0 one more than there are stages before it.  So in 1F1B order no stage keeps more than the first one's
    K + 1 micro-batches."""
    return min(most or stage + 1, len(works) // 2 - len(unawaited(stage, works)))


class Passes(NamedTuple):
    """How long a stage's passes of a micro-batch take.  Of a backward pass `weights` are weight gradients that wait: it
    computes them where it would wait itself, and those of more micro-batches than `waiting` before it goes on."""

    forward: float = 1
    backward: float = 2
    weights: float = 0

    def of(self, work: Work, *, whole: bool = False) -> float:
        if whole and work.kind == "B":
            return self.backward
        return {"F": self.forward, "B": self.backward - self.weights, "W": self.weights}[work.kind]


WHOLE, HALVED = Passes(), Passes(weights=1)  # backward passes in twice the time of forward ones


def timetables(order: Order, stages: int, microbatches: int) -> list[list[Work]]:
    """Those of all stages."""
    return [timetable(order, k, stages, microbatches) for k in range(stages)]


@dataclass(frozen=True)
class Course:
    """How a step goes where messages take no time.

    Attributes:
        starts: for each stage, when each of its works starts.
        length: when the last one ends.
        in_flight: for each stage, of how many micro-batches it keeps activations at most.
        ends: when each work of each stage ends.
    """

    starts: tuple[dict[Work, float], ...]
    length: float
    in_flight: tuple[int, ...]
    ends: dict[tuple[int, Work], float]

    def drawn(self) -> str:
        """A line for each stage, a column for each unit of time; times are whole units."""
        width = max(len(str(work)) for starts in self.starts for work in starts) + 1
        lines = []
        for stage, starts in enumerate(self.starts):
            cells = ["."] * int(self.length)
            for work, start in starts.items():
                cells[int(start)] = str(work)
                for later in range(int(start) + 1, int(self.ends[stage, work])):
                    cells[later] = "-"
            lines.append(f"stage {stage:<3} " + "".join(cell.ljust(width) for cell in cells).rstrip())
        return "\n".join(lines)


def course(tables: Sequence[Sequence[Work]], passes: Sequence[Passes] | Passes = WHOLE, most: int = 0) -> Course:
    """Follow the timetables of all stages, whose passes take so long: each its own, or all the same; `most` is that of
    `waiting`.  Raises ValueError where they wait for each other for ever."""
    each = [passes] * len(tables) if isinstance(passes, Passes) else passes
    ends: dict[tuple[int, Work], float] = {}
    starts: tuple[dict[Work, float], ...] = tuple({} for _ in tables)
    late: list[deque[Work]] = [deque() for _ in tables]
    clock = [0.0] * len(tables)
    alive, peak = [0] * len(tables), [0] * len(tables)
    whole = [unawaited(k, table) for k, table in enumerate(tables)]

    def do(k: int, work: Work, earliest: float = 0.0) -> None:
        starts[k][work] = max(clock[k], earliest)
        clock[k] = ends[k, work] = starts[k][work] + each[k].of(work, whole=work.microbatch in whole[k])

    def catch_up(k: int, left: int = 0, until: float = math.inf) -> None:
        """Weight gradients of all micro-batches but the newest `left`, as long as there is time."""
        while len(late[k]) > left and clock[k] < until:
            do(k, late[k].popleft())

    left = [deque(table) for table in tables]
    while any(left):
        moved = False
        for k, works in enumerate(left):
            while works and ((awaited := _awaited(k, works[0], len(tables))) is None or awaited in ends):
                work, there = works.popleft(), ends[awaited] if awaited else 0
                catch_up(k, until=there)
                if work.kind == "B" and work.microbatch in whole[k]:
                    catch_up(k)
                do(k, work, there)
                alive[k] += 1 if work.kind == "F" else -1
                peak[k] = max(peak[k], alive[k])
                if each[k].weights and work.kind == "B" and work.microbatch not in whole[k]:
                    late[k].append(Work("W", work.microbatch))
                catch_up(k, waiting(k, tables[k], most) if works else 0)
                moved = True
        if not moved:
            stuck = ", ".join(f"stage {k} at {works[0]}" for k, works in enumerate(left) if works)
            raise ValueError(f"the stages wait for each other: {stuck}")
    return Course(starts, max(clock), tuple(peak), ends)


def _awaited(stage: int, work: Work, stages: int) -> tuple[int, Work] | None:
    """The stage and the work whose result this one needs."""
    if work.kind == "F":
        return (stage - 1, work) if stage else None
    return (stage + 1, work) if stage + 1 < stages else (stage, Work("F", work.microbatch))
