"""Does anything grow?  Trends over the soak against tolerances, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from tools.campaigns.soaking import NOTHING, Started

Points = list[tuple[float, float]]  # (minutes since the start of the soak, value)
Starts = Sequence[Started]

_COMPARED = range(2, 6)  # epochs of a start in which ranks are compared: a whole cycle, one serial and three parallel
_SETTLED = 20  # epochs after which a process has grown to its size
_LEAST = 8  # points that make a trend
_MOST = 400  # points of which all pairs are looked at
_COLUMNS: dict[str, Callable[[Starts, Starts], object]] = {  # of the starts in a window and those that finished a run
    "starts": lambda part, _: len(part),
    "kills": lambda part, _: sum(s.disturbance.kind == "KILL" for s in part),
    "signals": lambda part, _: sum(s.disturbance.kind not in ("KILL", NOTHING) for s in part),
    " runs": lambda _, done: len(done),
    "rank MiB": lambda part, _: _middle(_compared(part, "anonymous")),
    "KiB/epoch": lambda part, _: _middle(growths(part)),
    " fds": lambda part, _: _middle(_compared(part, "descriptors")),
    "threads": lambda part, _: _middle(_compared(part, "threads")),
    "left: procs": lambda part, _: sum(s.left_processes for s in part),
    " shm": lambda part, _: sum(len(s.left_shared) for s in part),
    " tmp": lambda part, _: sum(len(s.left_temporary) for s in part),
    "run files": lambda _, done: _middle([(0, s.files) for s in done]),
    "   KiB": lambda _, done: _middle([(0, s.size_bytes // 1024) for s in done]),
}


@dataclass(frozen=True)
class Trend:
    """How one quantity has changed over the whole soak; `tolerance` is the largest growth that is let through."""

    name: str
    unit: str
    points: int
    median: float
    growth: float
    tolerance: float
    reason: str

    @property
    def grows(self) -> bool:
        return self.points >= _LEAST and self.growth > self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.name:<24} median {self.median:9.2f} {self.unit:<4} trend over the soak {self.growth:+9.2f}, "
            f"let through {self.tolerance:.2f} ({self.reason}), n = {self.points}"
        )


def slope(points: Points) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen), which a few strange ones cannot move."""
    thinned = points[:: len(points) // _MOST + 1]
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(thinned, 2) if b[0] > a[0]]
    return statistics.median(pairs) if pairs else 0.0


def trend(name: str, unit: str, points: Points, tolerance: float, reason: str) -> Trend:
    span = points[-1][0] - points[0][0] if len(points) > 1 else 0.0
    return Trend(name, unit, len(points), _median(points), slope(points) * span, tolerance, reason)


def trends(starts: Starts, finished: Starts) -> list[Trend]:
    """All that may grow.  `finished` are the starts that brought a run to its end."""
    memory = _compared(starts, "anonymous")
    few, logs = "one comes and goes", "its logs have a line more for every start, and runs differ in those"
    batch = "rank 0 keeps records; a batch's activations are more"
    number, size = _ended(finished, lambda s: s.files), _ended(finished, lambda s: s.size_bytes / 1024)
    return [
        trend("memory of a rank", "MiB", memory, 0.03 * _median(memory), "3 %: the allocator's choices differ"),
        trend("growth in an epoch", "KiB", growths(starts), 64.0, batch),
        trend("shared memory of a rank", "MiB", _compared(starts, "shared"), 1.0, "one message's"),
        trend("descriptors of a rank", "", _compared(starts, "descriptors"), 1.5, few),
        trend("threads of a rank", "", _compared(starts, "threads"), 1.5, few),
        trend("files of a run", "", number, 1.5, "a checkpoint has one less without rows"),
        trend("size of a run", "KiB", size, 64.0, logs),
    ]


def _median(points: Points) -> float:
    return statistics.median(value for _, value in points) if points else 0.0


def _compared(starts: Starts, name: str) -> Points:
    """The larger of the ranks at the comparable moment of each start that came so far; memory in MiB."""
    share = 1024 if name in ("anonymous", "shared") else 1
    return [
        (s.minute, max(getattr(sample, name) / share for n in _COMPARED for sample in s.epochs[n].values()))
        for s in starts
        if len(s.epochs) >= _COMPARED.stop
    ]


def _ended(finished: Starts, value: Callable[[Started], float]) -> Points:
    """Values of the ends of runs, brought to one level where checkpoint.aux makes them differ."""
    kinds = {s.aux: statistics.median(value(other) for other in finished if other.aux == s.aux) for s in finished}
    level = min(kinds.values(), default=0.0)
    return [(s.minute, value(s) - kinds[s.aux] + level) for s in finished]


def growths(starts: Starts) -> Points:
    """KiB by which a rank of each longer start has grown in an epoch, by its slope over the epochs."""
    found = []
    for s in starts:
        settled = s.epochs[_SETTLED:]
        if len(settled) >= 4:
            ranks = [[(float(n), float(e[rank].anonymous)) for n, e in enumerate(settled)] for rank in settled[0]]
            found.append((s.minute, max(map(slope, ranks))))
    return found


def complaints(starts: Starts, judged: Sequence[Trend]) -> list[str]:
    """Everything that is wrong, in sentences; empty for a good soak."""
    found = [s.complaint for s in starts if s.complaint]
    for name, left in (
        ("processes", [s.left_processes for s in starts]),
        ("files in /dev/shm", _shared_left(starts)),
        ("temporary files", [len(s.left_temporary) for s in starts]),
    ):
        if total := sum(left):
            found.append(f"{total} {name} were left behind by {sum(map(bool, left))} of {len(starts)} starts")
    for t in judged:
        if t.name == "growth in an epoch":
            if t.points >= _LEAST and t.median > t.tolerance:
                found.append(f"a rank grows by {t.median:.0f} KiB in an epoch, {t.tolerance:.0f} are let through")
        elif t.grows:
            found.append(
                f"{t.name} has grown by {t.growth:.2f} {t.unit}, {t.tolerance:.2f} are let through ({t.reason})"
            )
    return found


def _shared_left(starts: Starts) -> list[int]:
    """Files in /dev/shm that each start has left; one in twenty kills may come while MPI makes its own (2 MB)."""
    kills = sum(s.disturbance.kind == "KILL" for s in starts)
    left = [len(s.left_shared) for s in starts]
    return left if sum(left) > max(1, kills / 20) else [0] * len(left)


def table(starts: Starts, finished: Starts, window: float) -> str:
    """One line for every `window` minutes; columns are as wide as their heads."""
    lines, first = [" ".join([f"{'minutes':>11}", *_COLUMNS])], 0.0
    while any(s.minute >= first for s in starts):
        part, done = ([s for s in some if first <= s.minute < first + window] for some in (starts, finished))
        cells = [str(value(part, done)).rjust(len(head)) for head, value in _COLUMNS.items()]
        lines.append(" ".join([f"{first:5.4g} -{first + window:5.4g}", *cells]))
        first += window
    return "\n".join(lines)


def _middle(points: Points) -> str:
    return f"{_median(points):.4g}" if points else "-"
