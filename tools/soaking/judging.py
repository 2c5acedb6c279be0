"""Does anything grow?  Trends over the soak against tolerances, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from tools.soaking.starting import Started

Points = list[tuple[float, float]]  # (minutes since the start of the soak, value)

_COMPARED = range(2, 6)  # epochs of a start in which ranks are compared: a whole cycle, one serial and three parallel
_SETTLED = 20  # epochs after which a process has grown to its size
_LEAST = 8  # points that make a trend


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

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"grows": self.grows}


def slope(points: Points) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen), which a few strange ones cannot move."""
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(_thinned(points), 2) if b[0] > a[0]]
    return statistics.median(pairs) if pairs else 0.0


def _thinned(points: Points, most: int = 400) -> Points:
    return points[:: len(points) // most + 1]


def trend(name: str, unit: str, points: Points, tolerance: float, reason: str) -> Trend:
    span = points[-1][0] - points[0][0] if len(points) > 1 else 0.0
    middle = statistics.median(value for _, value in points) if points else 0.0
    return Trend(name, unit, len(points), middle, slope(points) * span, tolerance, reason)


def trends(starts: Sequence[Started], finished: Sequence[Started]) -> list[Trend]:
    """All that may grow.  `finished` are the starts that brought a run to its end."""
    memory = _compared(starts, lambda s: s.anonymous / 1024)
    typical = statistics.median(value for _, value in memory) if memory else 0.0
    return [
        trend("memory of a rank", "MiB", memory, 0.03 * typical, "3 %: the allocator's choices differ"),
        trend(
            "growth in an epoch", "KiB", growths(starts), 64.0, "rank 0 keeps records; a batch's activations are more"
        ),
        trend("shared memory of a rank", "MiB", _compared(starts, lambda s: s.shared / 1024), 1.0, "one message's"),
        trend("descriptors of a rank", "", _compared(starts, lambda s: s.descriptors), 1.5, "one comes and goes"),
        trend("threads of a rank", "", _compared(starts, lambda s: s.threads), 1.5, "one comes and goes"),
        trend("files of a run", "", _ended(finished, lambda s: s.files), 1.5, "a checkpoint has one less without rows"),
        trend(
            "size of a run",
            "KiB",
            _ended(finished, lambda s: s.size_bytes / 1024),
            64.0,
            "its logs have a line more for every start, and runs differ in those",
        ),
    ]


def _compared(starts: Sequence[Started], value: Callable[[Any], float]) -> Points:
    """The larger of the ranks at the comparable moment of each start that came so far."""
    return [
        (s.minute, max(value(sample) for n in _COMPARED for sample in s.epochs[n].values()))
        for s in starts
        if len(s.epochs) >= _COMPARED.stop
    ]


def _ended(finished: Sequence[Started], value: Callable[[Started], float]) -> Points:
    """Values of the ends of runs, brought to one level where checkpoint.aux makes them differ."""
    kinds = {s.aux: statistics.median(value(other) for other in finished if other.aux == s.aux) for s in finished}
    level = min(kinds.values(), default=0.0)
    return [(s.minute, value(s) - kinds[s.aux] + level) for s in finished]


def growths(starts: Sequence[Started]) -> Points:
    """KiB by which a rank of each longer start has grown in an epoch, by its slope over the epochs."""
    found = []
    for s in starts:
        settled = s.epochs[_SETTLED:]
        if len(settled) >= 4:
            ranks = [[(float(n), float(e[rank].anonymous)) for n, e in enumerate(settled)] for rank in settled[0]]
            found.append((s.minute, max(map(slope, ranks))))
    return found


def complaints(starts: Sequence[Started], judged: Sequence[Trend]) -> list[str]:
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


def _shared_left(starts: Sequence[Started]) -> list[int]:
    """Files in /dev/shm that each start has left; one in twenty kills may come while MPI makes its own (2 MB)."""
    kills = sum(s.disturbance.kind == "KILL" for s in starts)
    left = [len(s.left_shared) for s in starts]
    return left if sum(left) > max(1, kills / 20) else [0] * len(left)


def table(starts: Sequence[Started], finished: Sequence[Started], window: float) -> str:
    """One line for every `window` minutes."""
    head = f"{'minutes':>11} {'starts':>6} {'kills':>5} {'signals':>7} {'runs':>5} {'rank MiB':>8} {'KiB/epoch':>9} "
    head += f"{'fds':>4} {'threads':>7} {'left: procs':>11} {'shm':>4} {'tmp':>4} {'run files':>9} {'KiB':>6}"
    lines, first = [head], 0.0
    while any(s.minute >= first for s in starts):
        part = [s for s in starts if first <= s.minute < first + window]
        done = [s for s in finished if first <= s.minute < first + window]
        kills = sum(s.disturbance.kind == "KILL" for s in part)
        signals = sum(s.disturbance.kind not in ("KILL", "nothing") for s in part)
        cells = [
            _middle(_compared(part, lambda s: s.anonymous / 1024)),
            _middle(growths(part)),
            _middle(_compared(part, lambda s: s.descriptors)),
            _middle(_compared(part, lambda s: s.threads)),
        ]
        left = [sum(s.left_processes for s in part), sum(len(s.left_shared) for s in part)]
        left.append(sum(len(s.left_temporary) for s in part))
        size = [_middle([(0, s.files) for s in done]), _middle([(0, s.size_bytes // 1024) for s in done])]
        lines.append(
            f"{first:5.4g} -{first + window:5.4g} {len(part):>6} {kills:>5} {signals:>7} {len(done):>5} "
            f"{cells[0]:>8} {cells[1]:>9} {cells[2]:>4} {cells[3]:>7} {left[0]:>11} {left[1]:>4} {left[2]:>4} "
            f"{size[0]:>9} {size[1]:>6}"
        )
        first += window
    return "\n".join(lines)


def _middle(points: Points) -> str:
    return f"{statistics.median(value for _, value in points):.4g}" if points else "-"
