"""What the tools share: command lines, configurations, starts of the program and of forks, journals, tables, pages."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hpcsplit.config.option import show
from hpcsplit.host.launchers import alone, mpirun
from hpcsplit.host.proc import stat

ROOT = Path(__file__).resolve().parents[1]
MARK = "HPCSPLIT_STARTED_AS"  # in the environment of everything that a marked start has started
USAGE, INTERRUPTED, FAILED = 64, 130, 1
Sections = dict[str, dict[str, Any]]  # a configuration: section -> key -> value
T = TypeVar("T")


# ------------------------------------------------------------------------------------------------ command lines


class Parser(argparse.ArgumentParser):
    """Says a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE)


def say(text: str) -> None:
    """A line of progress, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def continuable(what: str) -> Iterator[None]:
    """Work that is continued by the same command: a signal ends it with a sentence, its end says how long it took."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    try:
        yield
    except KeyboardInterrupt:
        say("interrupted; start the same command again to continue")
        raise SystemExit(INTERRUPTED) from None
    say(f"{time.monotonic() - began:.0f} s; {what}")


def merged(*parts: Mapping[str, Mapping[str, Any]]) -> Sections:
    """Sections of a configuration, the later ones over the earlier ones."""
    whole: Sections = {}
    for part in parts:
        for section, keys in part.items():
            whole.setdefault(section, {}).update(keys)
    return whole


def write_toml(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> Path:
    """A configuration file."""
    lines = [f"{section}.{key} = {show(value)}\n" for section, keys in sections.items() for key, value in keys.items()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ starts


@dataclass(frozen=True)
class Ended:
    """How a start ended: exit code, when (s since 1970), how many outlived it, and why it was ended, or ""."""

    code: int
    at: float
    left: int
    why: str


class Start:
    """python `words` on so many ranks, in a session and an environment of its own; `marked` finds all of it.

    `out` gets what it says, but for its standard error where there is a file `err` for that.
    """

    def __init__(
        self, words: Sequence[object], ranks: int, mark: str, out: Path, err: Path | None = None, **extra: str
    ) -> None:
        clean = {name: value for name, value in alone().items() if not name.startswith("HPCSPLIT_")}
        launcher = [mpirun(), "-n", str(ranks)] if ranks > 1 else []
        self.mark, self.err = mark, err or out
        with out.open("ab") as stdout, self.err.open("ab") as stderr:
            self.process = subprocess.Popen(
                [*launcher, sys.executable, *map(str, words)],
                cwd=ROOT,
                env={**clean, "OMP_NUM_THREADS": "1", **extra, MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def end(self, limit_s: float = math.inf, look: Callable[[float], str] = lambda _: "", nap_s: float = 0.05) -> Ended:
        """Wait for its end; it is ended at the limit, or when `look`, told its seconds so far, gives a reason."""
        began, why = time.monotonic(), ""
        try:
            while self.process.poll() is None and not why:
                time.sleep(nap_s)
                seconds = time.monotonic() - began
                why = f"still there after {limit_s:.0f} s" if seconds > limit_s else look(seconds)
        finally:  # also when the tool is interrupted
            at = time.time()
            left = marked(self.mark) if self.process.poll() is None else survivors(self.mark)
            kill(left)
            self.process.wait()
        return Ended(self.process.returncode, at, len(left), why)

    def said(self) -> str:
        return text(self.err)


def text(path: Path) -> str:
    """What a program has written, whatever bytes there are."""
    return path.read_text(encoding="utf-8", errors="replace")


def marked(mark: str) -> list[int]:
    """The processes that are alive and were started under this mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if wanted in (folder / "environ").read_bytes().split(b"\0") and stat(int(folder.name))[1] != "Z":
                found.append(int(folder.name))
    return found


def survivors(mark: str, patience_s: float = 3.0) -> list[int]:
    """The processes of a start that outlive its launcher, after a moment in which the last ones may go."""
    until = time.monotonic() + patience_s
    while (found := marked(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def kill(processes: Iterable[int]) -> None:
    """SIGKILL to each of them that is still there."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def forked(act: Callable[[], int], said: Path, limit_s: float, nap_s: float = 0.01) -> int | None:
    """The exit code of what a child does in a session of its own, its output in a file; minus a signal; None where it
    was killed at the limit."""
    child, until = os.fork(), time.monotonic() + limit_s
    if not child:
        code = 70
        try:
            os.setsid()
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for copy, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
                os.dup2(source, copy)
            code = act()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(nap_s)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if not ended[0]:
        os.waitpid(child, 0)
        return None
    return os.waitstatus_to_exitcode(ended[1])


def last_line(text: str) -> str:
    """What a run said last: the program's own sentence where there is one, since a launcher talks after it."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" =\n")]
    own = [line for line in lines if line.startswith("hpcsplit:")]
    return (own or lines or ["it said nothing"])[-1]


# ------------------------------------------------------------------------------------------------ journals and tables


class Journal:
    """A file of JSON values, one a line, which grows by what is tried; `known` has the last one of each key.

    A last line that was not finished does not count.
    """

    def __init__(self, path: Path, key: Callable[[Any], Hashable]) -> None:
        self.path, self.key, self.lock = path, key, threading.Lock()
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        values = map(json.loads, lines)
        self.known: dict[Hashable, Any] = {key(value): value for value in values}

    def add(self, value: Any) -> None:
        with self.lock, self.path.open("a", encoding="utf-8") as lines:
            self.known[self.key(value)] = value
            lines.write(json.dumps(value) + "\n")


def content(root: Path, *places: str) -> str:
    """A hash of these files, and of all Python files in these folders."""
    found = [
        path for place in map(root.joinpath, places) for path in (place.rglob("*.py") if place.is_dir() else [place])
    ]
    return digest(b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in sorted(found)))


def digest(text: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(text).hexdigest()[:16]


def crossed(
    head: str,
    results: Sequence[T],
    rows: Sequence[str],
    columns: Sequence[str],
    places: Callable[[T], tuple[str, str]],
    cell: Callable[[Sequence[T]], str],
    first: Callable[[str, int], str] = str.rjust,
) -> list[str]:
    """A table of the results by the row and the column of each, with a bar between columns, which are as wide as they
    must be; "all" has those of every one, and `first` puts the first column into place."""

    def here(row: str, column: str) -> list[T]:
        return [r for r in results if all(a in (b, "all") for a, b in zip((row, column), places(r), strict=True))]

    table = [[head, *columns], *([row, *(cell(here(row, column)) for column in columns)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [" | ".join([first(row[0], widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]


def sections(page: Path) -> list[str]:
    """The sections ("## ...") that a page has already, in order; none where there is no page."""
    parts = page.read_text(encoding="utf-8").split("\n## ")[1:] if page.exists() else []
    return [f"## {part.rstrip()}\n" for part in parts]
