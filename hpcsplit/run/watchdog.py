"""Ends a run in which nothing moves any more, and says which rank stands where and what it waits for.

Each rank has one thread that looks at what the main thread leaves behind as it goes.  Progress is a verb of the stage
program, a block computed, a message taken in, or a mebibyte read or written; a rank that waits for others also takes
their progress for its own.  To know of it, every rank writes a short heartbeat (place, wait, count) beside its log.

Only time that the watchdog lives through counts, so a job that was suspended as a whole goes on.  A rank that waits for
nobody reports at the limit; one that waits does so `GRACE_S` later, when the rank to blame has had its turn.  A call
that never gives the interpreter back is reported by the ranks that wait for it.
"""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TypeVar

import msgspec

from hpcsplit.errors import ConfigError
from hpcsplit.files.nofollow import open_file, read_text, remove, replace
from hpcsplit.host.printable import printable
from hpcsplit.host.proc import moved_bytes

GRACE_S = 2.0
ORPHAN_S = 30.0  # of silence without a launcher, which may have ended other ranks: nobody else would end this one
END_S = 3.0  # for saying the last words; then the process ends without them
_MOVED_BYTES = 1 << 20
_STDERR = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Heartbeat:
    """What a rank lets the others know: how often it has moved, when last (s since 1970), and where it was then."""

    rank: int
    pid: int
    host: str
    moves: int
    at: float
    where: str
    waits: str

    def __str__(self) -> str:
        state = f"waits for {self.waits}" if self.waits else "waits for no other rank"
        return f"rank {self.rank} (pid {self.pid} on {self.host}): {self.where}; {state}"


class Heartbeats:
    """The heartbeats of all ranks, seen from one, in files beside their logs.  What the disk has no room for, others do
    not learn."""

    def __init__(self, logs: Sequence[Path], rank: int) -> None:
        self.log = logs[rank]
        self._others = [log for log in logs if log != self.log]

    def tell(self, beat: Heartbeat) -> None:
        """Let the others know."""
        fresh = self.log.with_suffix(".sign-new")
        with suppress(OSError, ConfigError):
            remove(fresh)
            with open(fresh, "xb", opener=open_file) as file:
                file.write(msgspec.json.encode(beat))
            replace(fresh, beside(self.log))

    def others(self) -> list[Heartbeat]:
        """The newest of every other rank."""
        return [beat for log in self._others if (beat := heartbeat_of(log))]

    def clear(self) -> None:
        """Take this rank's own away."""
        with suppress(OSError, ConfigError):
            remove(beside(self.log))

    def write(self, text: str) -> None:
        """Add a text to this rank's log."""
        with suppress(OSError, ConfigError), open(self.log, "a", encoding="utf-8", opener=open_file) as file:
            file.write(text)


def beside(log: Path) -> Path:
    """The file of a rank's heartbeat.  A run that ended unexpectedly leaves it behind."""
    return log.with_suffix(".sign")


def heartbeat_of(log: Path) -> Heartbeat | None:
    """The heartbeat beside the log of a rank, or None."""
    with suppress(OSError, ValueError, RecursionError, ConfigError):
        return msgspec.json.decode(read_text(beside(log)), type=Heartbeat)
    return None


def who(rank: int, host: str, where: str) -> str:
    """A rank as sentences about it begin."""
    return f"rank {rank} (stage {rank}) on {host}, {where}"


class Silence:
    """For how long (s) nothing has moved, looked at every `tick_s`; `moves` counts the looks that found progress."""

    def __init__(self, tick_s: float) -> None:
        self.seconds, self.moves = 0.0, 0
        self._longest_s = 2 * tick_s  # a longer gap between two looks was no silence: the process was stopped
        self._seen: tuple[float, int, int] | None = None
        self._moves: dict[int, int] = {}  # of the other ranks

    def look(self, now: float, beats: int, moved_bytes: int, *, waits: bool) -> None:
        """Take in this rank's own progress at `now` (s, monotonic)."""
        before, self._seen = self._seen or (now, beats, moved_bytes), (now, beats, moved_bytes)
        if beats != before[1] or (not waits and moved_bytes - before[2] >= _MOVED_BYTES):
            self.seconds, self.moves = 0.0, self.moves + 1
        else:
            self._seen = (now, beats, before[2])  # small amounts add up
            self.seconds += min(now - before[0], self._longest_s)

    def hear(self, clock: float, beats: Sequence[Heartbeat]) -> None:
        """Take in the progress of the others at `clock` (s since 1970)."""
        for beat in beats:
            if self._moves.get(beat.rank) != beat.moves:
                self.seconds = min(self.seconds, max(0.0, clock - beat.at))
            self._moves[beat.rank] = beat.moves


class Watchdog:
    """The thread of one rank."""

    def __init__(
        self,
        limit_s: float,  # how long nothing may move
        *,
        beats: Callable[[], int],  # the main thread's progress so far
        where: Callable[[], str],  # what the main thread does, in words
        waits: Callable[[], str] = lambda: "",  # what it waits for, "" when for no other rank
        orphaned: Callable[[], str] = lambda: "",  # who has gone that would have ended this rank, "" while they live
        rank: int,
        host: str,
        end: Callable[[], None],  # ends the whole job; called from the thread, does not return
    ) -> None:
        self.limit_s, self.rank, self.host = limit_s, rank, host
        self._beats, self._where, self._waits, self._orphaned, self._end = beats, where, waits, orphaned, end
        self._board: Heartbeats | None = None
        self._tick_s = min(1.0, limit_s / 20) or 1.0
        self._beat_s = min(30.0, limit_s / 10) or 30.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def post_on(self, board: Heartbeats) -> None:
        """Where heartbeats go, once the run directory is ours; the first one goes there now."""
        board.tell(self._heartbeat(Silence(self._tick_s), self._waits()))
        self._board = board

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs; a limit of 0 ends orphans alone."""
        self._thread.start()
        try:
            yield
        finally:
            self._closed.set()
            if threading.current_thread() is not self._thread:
                self._thread.join()
            if self._board:
                self._board.clear()

    def _watch(self) -> None:
        silence = Silence(self._tick_s)
        told, told_at, heard_at = -1, 0.0, 0.0
        while not self._closed.wait(self._tick_s):
            waits, now = self._waits(), time.monotonic()
            silence.look(now, self._beats(), moved_bytes(), waits=bool(waits))
            if self._board and silence.moves != told and now - told_at >= self._beat_s:
                self._board.tell(self._heartbeat(silence, waits))
                told, told_at = silence.moves, now
            orphaned = self._orphaned()
            limit_s = min(self.limit_s or math.inf, ORPHAN_S) if orphaned else self.limit_s or math.inf
            if waits and silence.seconds > limit_s / 4 and now - heard_at >= self._beat_s:
                silence.hear(time.time(), self._others())
                heard_at = now
            if silence.seconds > limit_s + GRACE_S * bool(waits) and not self._closed.is_set():
                self._report(silence.seconds, waits, orphaned or f"run.stall_limit = {self.limit_s / 60:g} minutes")

    def _heartbeat(self, silence: Silence, waits: str) -> Heartbeat:
        moved_at = time.time() - silence.seconds
        return Heartbeat(self.rank, os.getpid(), self.host, silence.moves, moved_at, self._where(), waits)

    def _others(self) -> list[Heartbeat]:
        return self._board.others() if self._board else []

    def _report(self, seconds: float, waits: str, why: str) -> None:
        """Say what is known, on the standard error and with all stacks in the log, and end the job."""
        faulthandler.dump_traceback_later(END_S, exit=True, file=_STDERR)  # should any of this hang, too
        doing = f"waits for {waits}" if waits else f"waits for no other rank, it is in {_place_of_main_thread()}"
        lines = [f"{who(self.rank, self.host, self._where())}: no progress for {seconds:.0f} s ({why}); it {doing}"]
        lines += [f"last heard {time.time() - beat.at:.0f} s ago: {beat}" for beat in self._others()]
        lines += [f"the stacks of all threads are in {self._board.log}"] if self._board else []
        lines += ["the job ends here; start the same command again to continue from the newest checkpoint"]
        text = "".join(f"hpcsplit: {printable(line, keep='')}\n" for line in lines)
        with suppress(OSError):  # a launcher that is gone reads nothing
            os.write(_STDERR, text.encode())  # not by way of sys.stderr, which a stuck thread may hold
        writer = threading.Thread(target=self._write_stacks, args=(text,), daemon=True)
        writer.start()
        writer.join(END_S / 2)
        self._end()

    def _write_stacks(self, text: str) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            text += f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        if self._board:
            self._board.write(text)


def in_time(limit_s: float, name: str, make: Callable[[], T]) -> T:
    """What `make` returns.  When it takes longer, whatever it does, this process ends: MPI's start-up lets no other
    thread run.  0: no limit.

    The stack is all that is printed then, so `name` (rank, stage, phase) stands in it as the name of a function.
    """
    code = (lambda make: make()).__code__.replace(co_name=name, co_qualname=name)
    if limit_s:
        faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=_STDERR)
    try:
        made: T = FunctionType(code, globals())(make)
        return made
    finally:
        faulthandler.cancel_dump_traceback_later()


def _place_of_main_thread() -> str:
    """The innermost line of this package that the main thread is in."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    package = Path(__file__).parents[1]
    while frame:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(package) and file != Path(__file__):
            return f"{file.relative_to(package.parent)}, line {frame.f_lineno}"
        frame = frame.f_back
    return "code outside this program"
