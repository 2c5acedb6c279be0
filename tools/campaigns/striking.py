"""What a fault does to the process that it strikes."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

DEADLY = ("KILL", "SEGV", "exception", "thread exception")
DISK = ("ENOSPC", "EIO")
SIGNALS = ("USR1", "TERM", "USR1 to one rank")
STALLS = ("stopped", "asleep")
TORN = "half a file"
DAMAGES = ("truncated", "bit flipped")
KINDS = (*DEADLY, *DISK, TORN, *DAMAGES, *SIGNALS, *STALLS)


class InjectedError(Exception):
    """A fault of the campaign, and no mistake of the program."""


def strike(kind: str, marker: Path, file: Any = None) -> None:
    """Write the time into the marker, then let it happen."""
    with marker.open("a", encoding="ascii") as out:
        out.write(f"{time.time()}\n")
    if kind == TORN:
        os.truncate(file, os.path.getsize(file) // 2)
    if kind in ("KILL", TORN, *DAMAGES):
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "SEGV":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "exception":
        raise InjectedError("a fault of the campaign")
    elif kind == "thread exception":
        threading.Thread(target=_raise).start()
    elif kind in DISK:
        number = getattr(errno, kind)
        raise OSError(number, os.strerror(number), str(file) if file else None)
    elif kind in SIGNALS:
        whom = os.getpid() if kind == "USR1 to one rank" or "PMI_RANK" not in os.environ else _mpirun()
        os.kill(whom, signal.SIGTERM if kind == "TERM" else signal.SIGUSR1)
        time.sleep(0.2)  # on its way to all ranks
    elif kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        assert kind == "asleep", kind
        while True:
            time.sleep(60)


def _raise() -> None:
    raise InjectedError("a fault of the campaign in a thread of its own")


def _mpirun() -> int:
    """The parent of this rank's proxy."""
    stat = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="ascii")
    return int(stat.rsplit(")", 1)[1].split()[1])
