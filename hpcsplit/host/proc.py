"""Processes as Linux's /proc shows them."""

from __future__ import annotations

from pathlib import Path


def stat(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Name, state letter, parent and so on of a process: proc(5)'s fields from the second.  OSError where it cannot be
    seen."""
    before, _, after = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    return [before.partition("(")[2], *after.split()]


def ancestors(pid: int, proc: Path = Path("/proc")) -> list[tuple[str, int]]:
    """Name and number of a process and of all above it, as far as they can be seen."""
    family = []
    while pid > 1:
        try:
            name, _, parent, *_ = stat(pid, proc)
        except OSError:
            break
        family.append((name, pid))
        pid = int(parent)
    return family
