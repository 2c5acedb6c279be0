"""Standard output and error that may go away, be full or know another alphabet: a write to them never ends the program.

The first write that fails sends a stream to /dev/null for good, file descriptor and all, so that libraries and child
processes fall silent with it.  A reader that has seen enough (`| head`, a pager that is left, a terminal that is gone)
costs a command nothing; where the disk under a result is full, `finish` makes it exit code 73.  A run does not
end by either: `during_a_run` lets it say so and go on.  A launcher of MPI that passes the output on would die where we
do not, so a run asks before it writes whether that would happen.
"""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import select
import stat
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from hpcsplit.errors import DONE, StoreError

_GONE = (errno.EPIPE, errno.ECONNRESET)
_GONE_UNLESS_A_FILE = (errno.EIO, errno.ENXIO)  # of a terminal; of a disk they are damage
_ASCII = {"×": "x", "−": "-", "–": "-", "—": "-", "·": "*", "µ": "u"}  # minus, en dash, em dash
_ASCII |= {"‖": "||", "→": "->", "←": "<-", "≤": "<=", "≥": ">="}

_streams: dict[str, _Stream] = {}
_run = False
_would_fail: Callable[[int], int] = lambda descriptor: 0  # noqa: E731


class _Stream(io.FileIO):
    """The lowest layer of a standard stream."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.title = name
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        while not self.failure:
            try:
                if reason := _would_fail(self.fileno()):
                    raise OSError(reason, os.strerror(reason))
                written = super().write(data)
            except OSError as error:
                self._give_up(error)
                break
            if written is not None:
                return written
            select.select([], [self], [])  # somebody who shares the pipe or terminal has set it not to block
        return memoryview(data).nbytes

    def _give_up(self, error: OSError) -> None:
        regular = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, self.fileno())
        os.close(silence)
        self.failure = error
        self.gone = error.errno in _GONE or (error.errno in _GONE_UNLESS_A_FILE and not regular)
        if _run:
            sentence = f"{self.title} cannot be written ({error.strerror}); the run goes on without it"
            logging.getLogger("hpcsplit.host.terminal").warning("%s", sentence)
            if self.title == "standard output":
                print(f"hpcsplit: {sentence}, see the run directory", file=sys.stderr, flush=True)


def protect() -> None:
    """Put safe streams in place of sys.stdout and sys.stderr; descriptors that are closed become /dev/null."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would be it, and whoever prints would write there
            silence = os.open(os.devnull, os.O_RDWR)
            if silence != descriptor:
                os.dup2(silence, descriptor)
                os.close(silence)
    codecs.register_error("hpcsplit.spell", _spell)
    logging.getLogger("hpcsplit.host.terminal").addHandler(logging.NullHandler())
    sys.stdout = _safe(sys.stdout, 1, "standard output")
    sys.stderr = _safe(sys.stderr, 2, "standard error")


def during_a_run(would_fail: Callable[[int], int] = lambda descriptor: 0) -> None:
    """From now on a run is under way, whose result is not what it prints; `would_fail` tells the error number with
    which a launcher would die that passes on what we write, 0 for none."""
    global _run, _would_fail
    _run, _would_fail = True, would_fail


def finish(code: int) -> int:
    """Write what has not been written yet; the exit code of a command that would end with `code`."""
    sys.stdout.flush()
    stream = _streams.get("standard output")
    if stream and stream.failure and not stream.gone and not _run and code == DONE:
        sentence = f"standard output cannot be written: {stream.failure.strerror}; make room, or send it elsewhere"
        print(f"hpcsplit: {sentence}", file=sys.stderr)
        code = StoreError.exit_code
    with suppress(OSError):
        sys.stderr.flush()
    return code


def _safe(before: TextIO | None, descriptor: int, title: str) -> TextIO:
    encoding, at_once = "utf-8", descriptor == 2
    if isinstance(before, io.TextIOWrapper):
        encoding, at_once = before.encoding, before.line_buffering or before.write_through
    stream = _streams[title] = _Stream(descriptor, title)
    buffer = io.BufferedWriter(stream)
    return io.TextIOWrapper(buffer, encoding=encoding, errors="hpcsplit.spell", line_buffering=at_once)


def _spell(error: UnicodeError) -> tuple[str, int]:
    """What a terminal cannot print, in letters that every terminal has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def _spelled(letter: str) -> str:
    name = unicodedata.name(letter, "")
    if name.startswith("GREEK"):
        spelled = name.rpartition(" ")[2].lower().replace("lamda", "lambda")
        return spelled if letter.islower() else spelled.capitalize()
    parts = unicodedata.normalize("NFKD", letter)
    plain = _ASCII.get(letter) or "".join(part for part in parts if not unicodedata.combining(part))
    return plain if plain.isascii() else letter.encode("ascii", "backslashreplace").decode()
