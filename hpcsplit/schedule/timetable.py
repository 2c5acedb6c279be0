"""The order in which a stage takes the micro-batches of an exact step, and the course of a pipeline of such stages.

GPipe (Huang et al. 2019) takes all forward passes, then all backward ones.  1F1B (PipeDream-Flush, Narayanan et al.
2021) goes backward as soon as it can: the step takes as long, but stage k of K keeps the activations of K - k
micro-batches at most, where GPipe keeps all M.  Both go backward in the order of the micro-batches, so that gradients
add up to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

Order = Literal["1f1b", "gpipe"]
ORDERS: tuple[Order, ...] = ("1f1b", "gpipe")


class Work(NamedTuple):
    """One pass of one micro-batch through a stage: "F", forward, or "B", backward."""

    kind: Literal["F", "B"]
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.microbatch}"


def slices(size: int, microbatches: int) -> list[slice]:
    """The micro-batches of a mini-batch of `size` samples, none of them empty."""
    edges = [m * size // microbatches for m in range(microbatches + 1)]
    return [slice(a, b) for a, b in pairwise(edges) if b > a]


def in_flight(order: Order, stage: int, stages: int, microbatches: int) -> int:
    """Forward passes before the first backward one: so many micro-batches' activations a stage keeps at most."""
    return microbatches if order == "gpipe" and stages > 1 else min(stages - stage, microbatches)


def timetable(order: Order, stage: int, stages: int, microbatches: int) -> list[Work]:
    """What stage number `stage` does in one step, in order."""
    ahead = in_flight(order, stage, stages, microbatches)
    works = [Work("F", m) for m in range(ahead)]
    for m in range(microbatches):
        works.append(Work("B", m))
        if ahead + m < microbatches:
            works.append(Work("F", ahead + m))
    return works


@dataclass(frozen=True)
class Course:
    """How a step goes where every stage takes equally long and messages take no time.

    Attributes:
        starts: for each stage, when each of its works starts.
        length: when the last one ends.
        in_flight: for each stage, of how many micro-batches it keeps activations at most.
    """

    starts: tuple[dict[Work, int], ...]
    length: int
    in_flight: tuple[int, ...]
    forward: int
    backward: int

    def drawn(self) -> str:
        """A line for each stage, a column for each unit of time."""
        width = max(len(str(work)) for starts in self.starts for work in starts) + 1
        lines = []
        for stage, starts in enumerate(self.starts):
            cells = ["."] * self.length
            for work, start in starts.items():
                cells[start] = str(work)
                for later in range(start + 1, start + self._duration(work)):
                    cells[later] = "-"
            lines.append(f"stage {stage:<3} " + "".join(cell.ljust(width) for cell in cells).rstrip())
        return "\n".join(lines)

    def _duration(self, work: Work) -> int:
        return self.forward if work.kind == "F" else self.backward


def course(tables: Sequence[Sequence[Work]], *, forward: int = 1, backward: int = 2) -> Course:
    """Follow the timetables of all stages; times are whole units.

    Raises:
        ValueError: they wait for each other for ever.
    """
    ends: dict[tuple[int, Work], int] = {}
    starts: tuple[dict[Work, int], ...] = tuple({} for _ in tables)
    clock, alive, most = ([0] * len(tables) for _ in range(3))
    while any(len(started) < len(table) for started, table in zip(starts, tables, strict=True)):
        moved = False
        for k, table in enumerate(tables):
            while len(starts[k]) < len(table):
                work = table[len(starts[k])]
                awaited = _awaited(k, work, len(tables))
                if awaited is not None and awaited not in ends:
                    break
                starts[k][work] = max(clock[k], ends[awaited] if awaited else 0)
                clock[k] = ends[k, work] = starts[k][work] + (forward if work.kind == "F" else backward)
                alive[k] += 1 if work.kind == "F" else -1
                most[k] = max(most[k], alive[k])
                moved = True
        if not moved:
            left = [(k, table[len(starts[k]) :]) for k, table in enumerate(tables)]
            stuck = ", ".join(f"stage {k} at {works[0]}" for k, works in left if works)
            raise ValueError(f"the stages wait for each other: {stuck}")
    return Course(starts, max(clock), tuple(most), forward, backward)


def _awaited(stage: int, work: Work, stages: int) -> tuple[int, Work] | None:
    """The stage and the work whose result this one needs."""
    if work.kind == "F":
        return (stage - 1, work) if stage else None
    return (stage + 1, work) if stage + 1 < stages else (stage, Work("F", work.microbatch))
