"""Starts Python under the mpirun beside this interpreter, or on the PATH, with a time limit for everything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcsplit.host.launchers import alone, mpirun

ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{ROOT}:{ROOT / 'tests' / 'lean'}"
MPIRUN = mpirun()

needs_mpi = pytest.mark.skipif(shutil.which(MPIRUN) is None, reason=f"no mpirun beside {sys.executable} or on the PATH")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def python(*args: object, ranks: int = 0, limit_s: float = 90, out: Path | None = None, **variables: str) -> Ended:
    """Run `python *args`, under mpirun where `ranks` says so, from the root of the repository."""
    command = [str(word) for word in (sys.executable, *args)]
    if ranks:
        command = [MPIRUN, "-n", str(ranks), *command]
    clean = {k: v for k, v in alone().items() if not k.startswith("HPCSPLIT_")}
    environment = {**clean, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", **variables}
    stdout = open(out, "w") if out else subprocess.PIPE  # noqa: SIM115
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, complained = process.communicate()
        pytest.fail(f"{' '.join(command)} took more than {limit_s} s\n{said}\n{complained}")
    finally:
        if not isinstance(stdout, int):
            stdout.close()
    return Ended(process.returncode, out.read_text() if out else said, complained)
