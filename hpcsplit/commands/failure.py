"""How a rank that cannot go on ends the run: it says who and where it is, and takes all ranks with it."""

from __future__ import annotations

import faulthandler
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import torch

from hpcsplit.engine.job import Job
from hpcsplit.errors import INTERNAL, STALLED, HpcsplitError
from hpcsplit.files.atomic import REFUSALS, write_failure
from hpcsplit.files.nofollow import open_file, too_many
from hpcsplit.host.printable import printable
from hpcsplit.run.watchdog import Watchdog, who
from hpcsplit.wire.port import World

_NO_MEMORY = "can't allocate memory"  # in the RuntimeError of torch's CPU allocator


class Failure:
    """The end of one rank's run.  `end` ends all ranks with an exit code; `jobs` are filled in when they are there."""

    def __init__(self, rank: int, host: str, end: Callable[[int], NoReturn]) -> None:
        self.rank, self.host = rank, host
        self.end = end
        self.jobs: list[Job] = []

    def where(self) -> str:
        return self.jobs[0].where if self.jobs else "start-up"

    def say(self, error: BaseException) -> int:
        """Print what has gone wrong, who failed and where; the exit code."""
        known = in_words(error)
        with suppress(Exception):
            if not isinstance(known, HpcsplitError):
                print("".join(traceback.format_exception(error)), file=sys.stderr)
            text = str(known) if isinstance(known, HpcsplitError) else f"{type(error).__name__}: {error}"
            name = who(self.rank, self.host, self.where())
            print(f"hpcsplit: {name}: {printable(text)}", file=sys.stderr, flush=True)
        return known.exit_code if isinstance(known, HpcsplitError) else INTERNAL

    def fail(self, error: BaseException) -> NoReturn:
        """Say it, and end all ranks; from any thread."""
        self.end(self.say(error))

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """An exception that a thread of its own does not catch ends the run, too."""
        before = threading.excepthook
        threading.excepthook = lambda args: self.fail(args.exc_value or RuntimeError("a thread failed"))
        try:
            yield
        finally:
            threading.excepthook = before

    def watchdog(self, limit_minutes: float, world: World) -> Watchdog:
        """What ends the run when nothing moves any more."""
        return Watchdog(
            60 * limit_minutes,
            beats=lambda: world.beats,
            where=self.where,
            waits=world.waits,
            orphaned=world.orphaned,
            rank=self.rank,
            host=self.host,
            end=lambda: self.end(STALLED),
        )


def in_words(error: BaseException) -> BaseException:
    """A refusal of the disk, of one more open file or of the memory as a sentence; any other error as it is."""
    if refused := too_many(error):
        return refused
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return write_failure(error.filename or "a file", error)
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if no_memory or (isinstance(error, RuntimeError) and _NO_MEMORY in str(error)):
        return HpcsplitError(
            f"out of memory ({error or 'MemoryError'}); lower data.batch_size, or start more ranks, each with less of "
            "the network"
        )
    return error


class RankLog(logging.FileHandler):
    """A rank's own log file.  A line that cannot be written ends the run, as any other full disk does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))

    def _open(self) -> TextIOWrapper:
        return open(self._path, "a", encoding="utf-8", opener=open_file)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            raise write_failure(self.baseFilename, error) from error
        super().handleError(record)


class Told(logging.Handler):
    """Says what a run does, with the time of day, once where several stages of one process do it.  Not warnings: one
    of them is that nothing can be said any more."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say, self._last = say, ""
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and record.getMessage() != self._last:
            self._last = record.getMessage()
            self._say(self.format(record))


@contextmanager
def crash_stacks(path: Path) -> Iterator[None]:
    """While the block runs, a crash (SIGSEGV, SIGBUS, …) writes the stacks of all threads to the end of this file."""
    before = faulthandler.is_enabled()
    with open(path, "a", encoding="utf-8", opener=open_file) as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            if before:
                faulthandler.enable(2)
