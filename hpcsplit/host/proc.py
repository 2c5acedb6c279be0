"""Processes as Linux's /proc shows them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


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
