"""What the tools share: their command lines, starting the program like a user, and finding what a start has left."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "HPCSPLIT_STARTED_AS"  # in the environment of everything that a marked start has started
USAGE, INTERRUPTED = 64, 130
LAUNCHERS = ("PMI", "OMPI_", "SLURM_")  # variables that make a process a rank of others
_OTHERS = (*LAUNCHERS, "HPCSPLIT_")


class Parser(argparse.ArgumentParser):
    """Says a usage error in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE)


def mpirun() -> str:
    """The mpirun beside this interpreter, or else the first on the PATH; its bare name where there is none."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun") or beside.name


def launch(
    words: Sequence[str], ranks: int, mark: str, out: IO[bytes], err: IO[bytes], extra: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """python `words` on so many ranks, in a session and an environment of its own; for `marked` to find."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    launcher = [mpirun(), "-n", str(ranks)] if ranks > 1 else []
    return subprocess.Popen(
        [*launcher, sys.executable, *words],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **extra, MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )


def marked(mark: str) -> list[int]:
    """The processes that are alive and were started under this mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if wanted in (folder / "environ").read_bytes().split(b"\0") and _state(folder) != "Z":
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


def content(root: Path, *places: str) -> str:
    """A hash of these files, and of all Python files in these folders."""
    found = [
        path for place in places for path in ([root / place] if place.endswith(".py") else (root / place).rglob("*.py"))
    ]
    return digest(b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in sorted(found)))


def kept(file: Path) -> list[Any]:
    """The JSON values that `keep` has added to a file, without a last line that was not finished."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def keep(file: Path, value: Any) -> None:
    """Add a JSON value to a file, in a line of its own."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(value) + "\n")


def digest(text: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(text).hexdigest()[:16]


def last_line(text: str) -> str:
    """What a run said last: the program's own sentence where there is one, since a launcher talks after it."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" =\n")]
    own = [line for line in lines if line.startswith("hpcsplit:")]
    return (own or lines or ["it said nothing"])[-1]


def _state(folder: Path) -> str:
    return (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
