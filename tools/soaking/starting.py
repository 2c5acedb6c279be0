"""One start of the run: watched, perhaps disturbed, and what it leaves behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tools.program import kill, survivors
from tools.soaking.problem import RANKS, Place
from tools.soaking.watching import Sample, files, ranks, sample, shared_files

KINDS = ("nothing", "KILL", "USR1", "TERM", "USR1 to one rank")
ENDS_S = 60.0  # after a disturbance; a stop writes a checkpoint first
STUCK_S = 240.0  # without an epoch
_LOOK_S = 0.2


@dataclass(frozen=True)
class Disturbance:
    """`kind` happens `after_s` seconds from the start; `rank` matters where one rank is struck."""

    kind: str
    after_s: float
    rank: int

    @classmethod
    def draw(cls, chance: random.Random, usual_s: float) -> Disturbance:
        """At a uniform moment of a start that usually takes `usual_s` seconds."""
        kind = chance.choice(KINDS)
        return cls(kind, chance.uniform(0.0, usual_s), chance.randrange(RANKS))


@dataclass
class Started:
    """What one start was like.  `epochs` has, for each epoch that it finished, the largest sample of each rank."""

    minute: float
    disturbance: Disturbance
    aux: str
    seconds: float = 0.0
    code: int = 0
    epochs: list[dict[int, Sample]] = field(default_factory=list)
    left_processes: int = 0
    left_shared: list[str] = field(default_factory=list)
    left_temporary: list[str] = field(default_factory=list)
    files: int = 0
    size_bytes: int = 0
    complaint: str = ""


def start(place: Place, mark: str, disturbance: Disturbance, minute: float, aux: str) -> Started:
    """Start, disturb, wait for the end, and look around."""
    found = Started(minute, disturbance, aux)
    began, struck = time.monotonic(), 0.0
    shared: set[Path] = set()
    process = place.start(mark)
    watch = _Watch(place, mark)
    try:
        while process.poll() is None:
            now = time.monotonic() - began
            if not struck and disturbance.kind != "nothing" and now >= disturbance.after_s:
                _strike(disturbance, process, mark)
                struck = now
            if struck and now > struck + ENDS_S:
                found.complaint = f"{disturbance.kind} after {struck:.1f} s: still there {ENDS_S:.0f} s later"
                break
            if time.monotonic() > watch.moved + STUCK_S:
                found.complaint = f"no epoch within {STUCK_S:.0f} s"
                break
            shared |= watch.look()
            time.sleep(_LOOK_S)
    finally:
        left = survivors(mark) if process.poll() is not None else [process.pid]
        kill([*left, *(survivors(mark, 0.0) if left else [])])
        process.wait()
    found.seconds, found.code, found.epochs = time.monotonic() - began, process.returncode, watch.epochs
    found.left_processes = len(left)
    found.left_shared = sorted(str(path) for path in shared if path.exists())
    found.left_temporary = sorted(path.name for path in place.temporary.iterdir())
    found.files, found.size_bytes = files(place.run) if place.run.exists() else (0, 0)
    return found


def _strike(disturbance: Disturbance, process: subprocess.Popen[bytes], mark: str) -> None:
    whom: int | None = process.pid  # mpirun hands signals on to all ranks
    if disturbance.kind in ("KILL", "USR1 to one rank"):
        whom = ranks(mark).get(disturbance.rank)
    number = signal.Signals["SIG" + disturbance.kind.split()[0]]
    if whom is None:  # it has not come up yet: the launcher is as good
        whom = process.pid
    try:
        os.kill(whom, number)
    except ProcessLookupError:
        return


class _Watch:
    """Follows the ranks of one start, epoch by epoch."""

    def __init__(self, place: Place, mark: str) -> None:
        self.place, self.mark = place, mark
        self.epochs: list[dict[int, Sample]] = []
        self.moved = time.monotonic()  # when the last epoch was finished
        self._ranks: dict[int, int] = {}
        self._lines = place.epochs()
        self._largest: dict[int, Sample] = {}

    def look(self) -> set[Path]:
        """Sample the ranks once; the files in /dev/shm that they use."""
        if len(self._ranks) < RANKS:
            self._ranks = ranks(self.mark)
        for rank, process in self._ranks.items():
            if now := sample(process):
                self._largest[rank] = _larger(self._largest.get(rank, now), now)
        if (lines := self.place.epochs()) != self._lines:
            if lines > self._lines and len(self._largest) == RANKS:
                self.epochs.append(self._largest)
            self._lines, self._largest, self.moved = lines, {}, time.monotonic()
        return shared_files(self._ranks.values())


def _larger(a: Sample, b: Sample) -> Sample:
    return Sample(*(max(pair) for pair in zip(vars(a).values(), vars(b).values(), strict=True)))
