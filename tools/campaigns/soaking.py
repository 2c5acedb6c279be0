"""One start of the run that is soaked: disturbed perhaps, and watched by what the kernel says about its processes and
files, without asking the program itself."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.campaigns.moments import SIGNALS
from tools.campaigns.runs import write_config
from tools.program import Start, marked, text

RANKS = 2
NOTHING = "nothing"
KINDS = (NOTHING, "KILL", *SIGNALS)
ENDS_S = 60.0  # after a disturbance; a stop writes a checkpoint first
STUCK_S = 240.0  # without an epoch
_LOOK_S = 0.2
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Sample:
    """One rank at one moment.  Memory in KiB: RssAnon, what it has for itself alone, and shared memory that it maps."""

    anonymous: int
    shared: int
    descriptors: int
    threads: int

    def larger(self, other: Sample) -> Sample:
        """The largest of each."""
        return Sample(*map(max, vars(self).values(), vars(other).values()))


def ranks(mark: str) -> dict[int, int]:
    """Rank -> process, as far as they have been started; a rank's own children do not count."""
    found: dict[int, int] = {}
    for process in sorted(marked(mark)):
        with suppress(OSError):
            if rank := re.search(rb"(?:^|\0)PMI_RANK=(\d+)", Path(f"/proc/{process}/environ").read_bytes()):
                found.setdefault(int(rank[1]), process)
    return found


def sample(process: int) -> Sample | None:
    """The process now; None when it has ended."""
    try:
        status = text(Path(f"/proc/{process}/status"))
        numbers = dict(re.findall(r"^(RssAnon|RssShmem|Threads):\s+(\d+)", status, re.MULTILINE))
        descriptors = sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
        return Sample(int(numbers["RssAnon"]), int(numbers["RssShmem"]), descriptors, int(numbers["Threads"]))
    except (OSError, KeyError):
        return None


def shared_files(processes: Iterable[int]) -> set[Path]:
    """Files in /dev/shm that these processes map or have open, by the names that they have there."""
    found = set()
    for process in processes:
        with suppress(OSError):
            found |= {Path(name) for name in re.findall(rf"({_SHARED}/\S+)", text(Path(f"/proc/{process}/maps")))}
            links = [path.readlink() for path in Path(f"/proc/{process}/fd").iterdir()]
            found |= {link for link in links if link.is_relative_to(_SHARED)}
    return found


def files(folder: Path) -> tuple[int, int]:
    """(number, bytes) of the files below a folder; links are not followed."""
    sizes = [path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return len(sizes), sum(sizes)


@dataclass(frozen=True)
class Disturbance:
    """`kind` happens `after_s` seconds from the start; `rank` matters where one rank is struck."""

    kind: str = NOTHING
    after_s: float = 0.0
    rank: int = 0

    @classmethod
    def draw(cls, chance: random.Random, usual_s: float) -> Disturbance:
        """At a uniform moment of a start that usually takes `usual_s` seconds."""
        return cls(chance.choice(KINDS), chance.uniform(0.0, usual_s), chance.randrange(RANKS))

    def __str__(self) -> str:
        return self.kind if self.kind == NOTHING else f"{self.kind} at {self.after_s:.1f} s"


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


class Soaked:
    """One run, its configuration and everything that it may write, in a fresh folder; `aux` is checkpoint.aux.

    Digits on two ranks, serial and parallel epochs, checkpoints within epochs too.
    """

    def __init__(self, folder: Path, aux: str, epochs: int) -> None:
        self.folder, self.aux = folder, aux
        self.run, self.temporary, self.said = folder / "run", folder / "tmp", folder / "said.txt"
        shutil.rmtree(folder, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        self.toml = write_config(
            folder / "soak.toml",
            data={"name": "digits", "limit_train": 160, "limit_test": 64, "batch_size": 32, "eval_train": 64},
            schedule={"epochs": epochs, "ratio": "1:3"},
            optim={"lr": 0.05, "clip": 1.0},
            checkpoint={"aux": aux, "every_minutes": 0.05},
            run={"stall_limit": 1.0},
        )

    def lines(self) -> int:
        """In records.jsonl: one an epoch."""
        try:
            return (self.run / "records.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def start(self, mark: str, disturbance: Disturbance, minute: float) -> Started:
        """Train or continue, disturb, wait for the end, and look around."""
        began, found = time.monotonic(), Started(minute, disturbance, self.aux)
        words = ["-m", "hpcsplit", "train", self.toml, "--run-dir", self.run]
        started = Start(words, RANKS, mark, self.said, TMPDIR=str(self.temporary))
        processes, largest = dict[int, int](), dict[int, Sample]()
        shared = set[Path]()  # the files in /dev/shm that the ranks use
        lines, moved, struck = self.lines(), 0.0, 0.0  # seconds until the last epoch was finished, and the disturbance

        def look(seconds: float) -> str:
            """Sample the ranks once; why there is no use in waiting any longer, or ""."""
            nonlocal processes, largest, lines, moved, struck
            if not struck and disturbance.kind != NOTHING and seconds >= disturbance.after_s:
                whom = started.process.pid  # mpirun, which hands signals on to all ranks
                if disturbance.kind in ("KILL", "USR1 to one rank"):  # if that rank has come up yet
                    whom = ranks(mark).get(disturbance.rank, whom)
                with suppress(ProcessLookupError):
                    os.kill(whom, SIGNALS.get(disturbance.kind, signal.SIGKILL))
                struck = seconds
            if struck and seconds > struck + ENDS_S:
                return f"{disturbance.kind} after {struck:.1f} s: still there {ENDS_S:.0f} s later"
            if seconds > moved + STUCK_S:
                return f"no epoch within {STUCK_S:.0f} s"
            if len(processes) < RANKS:
                processes = ranks(mark)
            for rank, process in processes.items():
                if now := sample(process):
                    largest[rank] = now.larger(largest.get(rank, now))
            if (found_lines := self.lines()) != lines:
                if found_lines > lines and len(largest) == RANKS:
                    found.epochs.append(largest)
                lines, largest, moved = found_lines, {}, seconds
            shared.update(shared_files(processes.values()))
            return ""

        ended = started.end(look=look, nap_s=_LOOK_S)
        found.code, found.left_processes, found.complaint = ended.code, ended.left, ended.why
        found.files, found.size_bytes = files(self.run)
        found.seconds = time.monotonic() - began
        found.left_shared = sorted(str(path) for path in shared if path.exists())
        found.left_temporary = sorted(path.name for path in self.temporary.iterdir())
        return found
