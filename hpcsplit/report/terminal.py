"""Does a person watch this output?  A launcher of MPI stands between a rank and the terminal and hides the answer."""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from pathlib import Path
from typing import TextIO

from hpcsplit.host.launchers import RELAYS
from hpcsplit.host.proc import ancestors

DAEMONS = {"orted", "prted"}  # stand in for an Open MPI launcher on another machine
DEFAULT_WIDTH = 100

_TERMINAL = re.compile(r"/dev/(pts/\d+|tty\w+)")


def terminal_of(stream: TextIO, proc: Path = Path("/proc"), pid: int | None = None) -> str | None:
    """The device of the terminal at which the stream ends, directly or through the launcher that started this process;
    None if there is none.

    A rank's own isatty cannot tell: MPICH and srun give every rank a pipe even at a terminal, and Open MPI gives it
    a pseudo-terminal of its own even when the job writes to a file.  So the launcher's standard output decides.
    """
    own = _device(stream) if stream.isatty() else None
    if not _may_be_relayed(stream):
        return own
    if not (launcher := _launcher_above(proc, pid or os.getpid())):
        return own
    name, launcher_pid = launcher
    try:
        target = os.readlink(proc / str(launcher_pid) / "fd" / "1")
    except OSError:
        return None
    return target if name not in DAEMONS and _TERMINAL.fullmatch(target) else None


def launcher_would_fail(descriptor: int, proc: Path = Path("/proc")) -> int:
    """The error number with which the launcher above this process would fail to pass on what is written to `descriptor`
    (1 or 2), 0 for none: EPIPE where nobody reads its pipe any more, ENOSPC where the disk of its file is full."""
    launcher = _launcher_above(proc, os.getpid())
    if launcher is None or launcher[0] in DAEMONS:
        return 0
    target = proc / str(launcher[1]) / "fd" / str(descriptor)
    try:
        kind = target.stat().st_mode
        if stat.S_ISREG(kind):
            return 0 if os.statvfs(target).f_bavail else errno.ENOSPC
        return errno.EPIPE if stat.S_ISFIFO(kind) and not _has_reader(target) else 0
    except OSError:
        return 0


def _has_reader(pipe: Path) -> bool:
    end, poll = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), select.poll()
    try:
        poll.register(end, select.POLLOUT)
        return not any(event & select.POLLERR for _, event in poll.poll(0))
    finally:
        os.close(end)


def terminal_width(device: str) -> int:
    """Columns of a terminal, DEFAULT_WIDTH where it does not tell."""
    try:
        with open(device, "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NOCTTY)) as file:
            return os.get_terminal_size(file.fileno()).columns or DEFAULT_WIDTH
    except OSError:
        return DEFAULT_WIDTH


def _device(stream: TextIO) -> str:
    try:
        return os.ttyname(stream.fileno())
    except (OSError, ValueError):
        return "/dev/tty"


def _may_be_relayed(stream: TextIO) -> bool:
    """Whether another process may read what is written here: a pipe, a socket or a pseudo-terminal."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):  # not a file of the operating system
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stream.isatty()


def _launcher_above(proc: Path, pid: int) -> tuple[str, int] | None:
    """Name and process id of the nearest ancestor that launches MPI ranks; needs Linux's /proc."""
    return next((each for each in ancestors(pid, proc) if each[0] in RELAYS | DAEMONS), None)
