"""Lock files of owners that are dead, elsewhere or damaged, and processes that own one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from hpcsplit.host.process import Process
from hpcsplit.run.lock import Owner, Pace
from tests.wire.launch import ROOT

QUICK = Pace(beat=0.2, limit=2.0, patience=0.3, ending=0.6, writing=0.5, look=0.02)
ELSEWHERE = Process("another-boot/pid:[1]", 4711, 99)


def dead_process() -> Process:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        return process_of(child.pid)


def process_of(pid: int) -> Process:
    """What that process, alive, says of itself."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return dataclasses.replace(Process.this(), pid=pid, started=int(words[19]))


def left_behind(path: Path, process: Process, *others: Process, age_s: float = 0.0, **changes: Any) -> Owner:
    """A lock file of this process, last touched so long ago."""
    owner = dataclasses.replace(Owner.this(), process=process, host="n1", **changes)
    listed = f"[{', '.join(str(vars(p)) for p in others)}]\n".replace("'", '"') if others else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{msgspec.json.encode(owner).decode()}\n{listed}")
    if age_s:
        touched = path.stat().st_mtime - age_s
        os.utime(path, (touched, touched))
    return owner


@contextmanager
def held_by_another(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process owns the lock, at the usual pace, until it is killed."""
    command = [sys.executable, "-m", "tests.run.holder", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "mine\n"
            yield other
        finally:
            other.kill()
