"""tools/soak: the loop, its table and its verdict."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from hpcsplit.errors import DONE
from tools.campaigns.runs import learned
from tools.campaigns.soaking import NOTHING, Disturbance, Soaked, Started
from tools.program import FAILED, ROOT, Parser

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
WINDOW = 5.0  # minutes in a line of the table
_AUX = ("copy", "keep")  # checkpoint.aux of one run and of the next


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


class Soak:
    """The state of the loop; `starts` and `finished` hold what was measured."""

    def __init__(self, out: Path, seed: int, minutes: float, epochs: int) -> None:
        self.out, self.minutes, self.epochs = out, minutes, epochs
        self.chance = random.Random(seed)
        self.starts: list[Started] = []
        self.finished: list[Started] = []
        self.wrong: list[str] = []
        self.began = time.monotonic()

    @property
    def minute(self) -> float:
        return (time.monotonic() - self.began) / 60

    def go(self) -> None:
        """One run that nobody disturbs, then disturbed ones until the time is up and one of them has been compared."""
        run: Soaked | None = None
        reference: list[tuple[int, str]] = []  # epoch, hash of the weights after it
        usual_files = set[str]()  # that torch leaves in a folder for temporary files, once
        while not self.wrong and not (self.minute >= self.minutes and len(self.finished) > 1):
            runs = len(self.finished)
            run = run or Soaked(self.out / f"run-{runs:04d}", _AUX[runs % 2], self.epochs)
            disturbance = Disturbance.draw(self.chance, self.finished[0].seconds) if runs else Disturbance()
            found = run.start(f"{os.getpid()}-{len(self.starts)}", disturbance, self.minute)
            usual_files |= set() if runs else set(found.left_temporary)
            found.left_temporary = [name for name in found.left_temporary if name not in usual_files]
            self.starts.append(found)
            said = f"run {runs}, {disturbance}: {found.seconds:.1f} s, exit {found.code}, {len(found.epochs)} epochs"
            trouble = f"; {found.complaint}" if found.complaint else ""
            print(f"{found.minute:6.1f} min  {said}{trouble}", file=sys.stderr, flush=True)
            # only what was disturbed may end otherwise than well; a signal may also come before it is heard
            calm = disturbance.kind == NOTHING or disturbance.after_s > found.seconds
            if calm and not found.complaint and found.code != DONE:
                self.wrong.append(f"start {len(self.starts)} ended with {found.code}; see {run.said}")
            if found.code == DONE:
                self.finished.append(found)
                weights = [(record["epoch"], record["weights_sha256"]) for record in learned(run.run)]
                reference = reference if runs else weights
                if weights == reference:
                    shutil.rmtree(run.folder)
                else:
                    said = f"run {runs} has other weights than the one that nobody disturbed"
                    self.wrong.append(f"{said}; see {run.folder}")
                run = None
            if found.complaint:
                return

    def report(self) -> tuple[str, bool]:
        """The table and the verdict in words, also written to soak.json; whether all is well."""
        judged = trends(self.starts, self.finished)
        wrong = [*self.wrong, *complaints(self.starts, judged)]
        resumed = sum(s.disturbance.kind != NOTHING for s in self.starts)
        lines = [
            table(self.starts, self.finished, min(WINDOW, max(self.minutes / 4, 0.5))),
            "",
            *map(str, judged),
            "",
            f"{self.minute:.1f} minutes, {len(self.starts)} starts, {resumed} disturbed, "
            f"{len(self.finished)} runs finished, all but the first compared with it",
            "verdict: " + ("nothing grows" if not wrong else "; ".join(wrong)),
        ]
        values = {
            "minutes": self.minute,
            "good": not wrong,
            "complaints": wrong,
            "runs": len(self.finished),
            "trends": [asdict(t) | {"grows": t.grows} for t in judged],
            "starts": [asdict(s) for s in self.starts],
        }
        (self.out / "soak.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        return "\n".join(lines), not wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="tools/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="which disturbances (default: 0)")
    parser.add_argument("--epochs", type=int, default=40, help="of each run (default: 40)")
    parser.add_argument("--out", type=Path, help="default: runs/soak-SEED")
    args = parser.parse_args(argv)
    if not 0 < args.minutes < 1e6:
        parser.error(f"--minutes {args.minutes} must be a number above 0")
    if args.epochs < 1:
        parser.error(f"--epochs {args.epochs} must be 1 or more")
    out = (args.out or ROOT / "runs" / f"soak-{args.seed}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    soak = Soak(out, args.seed, args.minutes, args.epochs)
    try:
        soak.go()
    except KeyboardInterrupt:
        soak.wrong.append("interrupted")
    text, good = soak.report()
    print(text)
    print(f"values: {out}/soak.json", file=sys.stderr)
    return DONE if good else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
