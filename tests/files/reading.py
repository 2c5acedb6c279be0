"""Reads damaged files with their checksums out of the way:  python -m tests.files.reading FOLDER COUNT.

FOLDER has intact files.  Damage number N is a change of one of them, made in FOLDER/damaged and read by a forked child,
since the library may crash on it; the child goes on with the next ones until it dies, then another one takes its place.
Each line of the output is JSON: {"n", "file", "kind", "outcome"}, where the outcome is what the child says, "loop" when
the library would not come back, or "crash NAME" with the signal that killed it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from hpcsplit.errors import CheckpointError
from hpcsplit.files.hdf5 import read_attributes, read_tensors, rows_layout
from hpcsplit.store.rowfile import RowFile
from tests.files.mutations import KINDS, Mutation

LOOP_S = 1.0  # of computing on one file, which takes milliseconds
_EXTRA_BYTES = 1 << 30  # a file may claim to be larger than any memory


def chosen(folder: Path, n: int) -> tuple[Path, Path, Mutation]:
    """The file of damage number `n`, a file of another kind, and the damage."""
    files = sorted(folder.glob("*.h5"))
    return files[n % len(files)], files[(n + 1) % len(files)], Mutation(KINDS[n // len(files) % len(KINDS)], n)


def read(path: Path) -> str:
    """Read as a program does that trusts the file; "read", "sentence" or the exception that got out."""
    try:
        read_attributes(path)
        if path.name.startswith("aux"):
            layout = rows_layout(path)
            with closing(RowFile(path, layout, writable=False)) as file:
                file.gather(np.arange(layout.rows))
                file.index()
        else:
            read_tensors(path)
    except CheckpointError:
        return "sentence"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "read"


def child(folder: Path, first: int, count: int, out: int) -> None:
    """Say before each file which one it is, and after it what came of it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _EXTRA_BYTES, used + _EXTRA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    place = folder / "damaged"
    place.mkdir(exist_ok=True)
    for n in range(first, count):
        path, other, mutation = chosen(folder, n)
        damaged = place / path.name
        damaged.write_bytes(mutation.apply(path.read_bytes(), other.read_bytes()))
        signal.setitimer(signal.ITIMER_VIRTUAL, LOOP_S)  # nobody handles it, so it ends the process
        outcome = read(damaged)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        os.write(out, f"{n} {outcome}\n".encode())


def main(folder: Path, count: int) -> None:
    n = 0
    while n < count:
        inlet, outlet = os.pipe()
        worker = os.fork()
        if not worker:
            os.close(inlet)
            child(folder, n, count, outlet)
            os._exit(0)
        os.close(outlet)
        with open(inlet) as lines:
            for line in lines:
                said, _, outcome = line.rstrip("\n").partition(" ")
                say(folder, int(said), outcome)
                n = int(said) + 1
        status = os.waitpid(worker, 0)[1]
        if n < count:
            name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
            say(folder, n, "loop" if name == "SIGVTALRM" else f"crash {name}")
            n += 1


def say(folder: Path, n: int, outcome: str) -> None:
    path, _, mutation = chosen(folder, n)
    print(json.dumps({"n": n, "file": path.name, "kind": mutation.kind, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
