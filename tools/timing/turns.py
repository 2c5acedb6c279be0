"""Contenders that take turns, so that a slow minute of the machine strikes all of them.

A contender is one process or several.  Each gets ready (imports, weights, a warm-up) and then sleeps until its turn;
the next contender's turn begins when all of them have noted their seconds.  One that fails or hangs is struck off with
what it said, and the others go on.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from hpcsplit.config import Config, load
from tools.program import Start, kill, last_line, marked, text

LIMIT_S = 400.0  # for everybody to get ready, and for a turn
_NAP_S = 0.01
OVER = "over"


@dataclass
class Contender:
    """What takes part under one name.

    Attributes:
        starts: (words for Python, ranks) of each start.  The folder of the play and the number of the start's first
            process are the last words.
        label: what a table adds to its name for it.
        notes: what every process noted in every round, and `failure` why there are no more.
    """

    name: str
    starts: Sequence[tuple[Sequence[str], int]]
    notes: list[list[dict[str, Any]]] = field(default_factory=list)
    failure: str = ""
    label: str = ""

    @property
    def processes(self) -> int:
        return sum(ranks for _, ranks in self.starts)

    def seconds(self) -> list[float]:
        """The slowest process of each round."""
        return [max(note["seconds"] for note in notes) for notes in self.notes]

    def cpu_seconds(self) -> list[float]:
        """Of all processes together, in each round."""
        return [sum(note["cpu_s"] for note in notes) for notes in self.notes]


def peer(module: str, kind: str, config: Path, ranks: int) -> tuple[list[str], int]:
    """A start of a module in tools/timing/peers, which does what it calls `kind`."""
    return ["-m", f"tools.timing.peers.{module}", kind, str(config)], ranks


def play(contenders: Sequence[Contender], rounds: int, folder: Path, *, limit_s: float = LIMIT_S) -> None:
    """Let all take so many turns; their notes are in the contenders afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    processes: dict[str, list[Start]] = {}
    with ExitStack() as guards:
        for contender in contenders:
            place = folder / contender.name
            place.mkdir()
            guards.callback(lambda place: kill(marked(str(place))), place)
            started, first = processes.setdefault(contender.name, []), 0
            for words, ranks in contender.starts:
                started.append(Start([*words, place, first], ranks, str(place), place / "said"))
                first += ranks
            _await(contender, place, "ready", started, limit_s)
        for number in range(rounds):
            for contender in contenders:
                place = folder / contender.name
                if not contender.failure:
                    (place / f"turn-{number}").touch()
                    _await(contender, place, f"done-{number}", processes[contender.name], limit_s)
                if not contender.failure:
                    notes = [json.loads(path.read_text()) for path in sorted(place.glob(f"done-{number}-*"))]
                    contender.notes.append(notes)
                latest = contender.failure or f"{contender.seconds()[-1]:.3f} s"
                print(f"{number + 1}/{rounds} {contender.name}: {latest}", file=sys.stderr, flush=True)
        for contender in contenders:
            (folder / contender.name / OVER).touch()
        time.sleep(1.0)  # for them to leave by themselves


def _await(contender: Contender, place: Path, what: str, started: Sequence[Start], limit_s: float) -> None:
    """Wait until every process has written its file, or strike the contender off."""
    until = time.monotonic() + limit_s
    while len(list(place.glob(f"{what}-*"))) < contender.processes:
        codes = [start.process.poll() for start in started]
        ended = any(code is not None for code in codes)
        if ended or time.monotonic() > until:
            reason = f"ended (exit {', '.join(map(str, codes))}): " if ended else f"no answer in {limit_s:.0f} s: "
            contender.failure = reason + last_line(text(place / "said"))
            kill(marked(str(place)))
            return
        time.sleep(_NAP_S)


def told() -> tuple[str, Config, str, int]:
    """What `play` passes to a peer: what it calls its way, the configuration, the folder of the play, and the number of
    the start's first process."""
    kind, config, place, first = sys.argv[1:]
    return kind, load(config), place, int(first)


class Player:
    """Process `number` of a contender, on cores of its own."""

    def __init__(self, place: str, number: int, cores: int = 1) -> None:
        self.place, self.number = Path(place), number
        known = sorted(os.sched_getaffinity(0))  # more processes than cores share them
        os.sched_setaffinity(0, {known[(number * cores + i) % len(known)] for i in range(cores)})

    def turns(self) -> Iterator[int]:
        """The number of each turn, when it has come; ends with the play."""
        (self.place / f"ready-{self.number}").touch()
        for number in count():
            while not (self.place / f"turn-{number}").exists():
                if (self.place / OVER).exists():
                    return
                time.sleep(_NAP_S)
            yield number

    def note(self, number: int, seconds: float, **more: Any) -> None:
        """Write down how long turn `number` took."""
        draft = self.place / f".{self.number}"
        draft.write_text(json.dumps({"seconds": seconds, **more}), encoding="utf-8")
        draft.rename(self.place / f"done-{number}-{self.number}")
