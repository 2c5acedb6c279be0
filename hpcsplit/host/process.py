"""A process as others can recognise it later: machine, process id, and when it was started."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec

from hpcsplit.host.proc import stat


@dataclass(frozen=True)
class Process:
    """A process id says nothing on another machine, and is used again on its own; hence the other two."""

    machine: str
    pid: Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
    started: int  # clock ticks after the machine's start; 0: not known

    @classmethod
    def this(cls) -> Process:
        state = _state(os.getpid())
        return cls(_machine(), os.getpid(), state[1] if state else 0)

    @property
    def here(self) -> bool:
        """Whether this process is on the same machine, so that `alive` can be asked."""
        return self.machine == _machine()

    @property
    def alive(self) -> bool:
        """Whether it still runs.  A zombie does not, nor one whose number another process has by now."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        result = _state(self.pid)
        if result is None:  # there is no /proc, or it hides other users' processes
            return True
        state, started = result
        return state not in "ZX" and (started == self.started or not self.started)


@cache
def _machine() -> str:
    """This start of the operating system, and the numbering of processes that this one lives in (containers)."""
    parts = []
    with suppress(OSError):
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()]
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts) or socket.gethostname()


def _state(pid: int) -> tuple[str, int] | None:
    """(state letter, start in clock ticks) of a process; None where that cannot be seen."""
    with suppress(OSError, IndexError, ValueError):
        words = stat(pid)
        return words[1], int(words[20])
    return None
