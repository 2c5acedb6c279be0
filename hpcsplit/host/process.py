"""Processes as Linux's /proc shows them, and one as others can recognise it later."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import msgspec


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


def stat(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Name, state letter, parent and so on of a process: proc(5)'s fields from the second.  OSError where it cannot be
    seen."""
    before, _, after = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    return [before.partition("(")[2], *after.split()]


def ancestors(pid: int, proc: Path = Path("/proc")) -> list[tuple[str, int]]:
    """Name and number of a process and of all above it, as far as they can be seen."""
    family = []
    with suppress(OSError):
        while pid > 1:
            name, _, parent, *_ = stat(pid, proc)
            family.append((name, pid))
            pid = int(parent)
    return family


def value_in(file: str, name: str) -> str | None:
    """The first value of this name in a file of /proc with a line "name: value" each; None where it has none."""
    with suppress(OSError):
        for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
            if line.partition(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    return None


def moved_bytes() -> int:
    """Bytes that this process has read and written by system calls and by page faults; 0 where nobody counts them."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:
            counts = dict(line.split(": ") for line in file)
        return int(counts["rchar"]) + int(counts["wchar"]) + int(counts["read_bytes"])
    except (OSError, ValueError, KeyError):
        return 0


def peak_resident_bytes() -> int | None:
    """The most memory that this process has had resident so far, shared libraries included; None where Linux does not
    say.  getrusage would count the program before exec, too."""
    with suppress(ValueError):
        if peak := value_in("/proc/self/status", "VmHWM"):
            return 1024 * int(peak.split()[0])
    return None
