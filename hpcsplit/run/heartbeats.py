"""What the ranks of a run let each other know while they wait, in files beside their logs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from hpcsplit.errors import ConfigError
from hpcsplit.files.nofollow import open_file, read_text, remove, replace
from hpcsplit.host.watchdog import Heartbeat


class Heartbeats:
    """Those of all ranks, seen from one.  What the disk has no room for, the others do not learn.

    Args:
        logs: the log file of each rank.
    """

    def __init__(self, logs: Sequence[Path], rank: int) -> None:
        self.log = logs[rank]
        self._others = [log for log in logs if log != self.log]

    def tell(self, beat: Heartbeat) -> None:
        path = beside(self.log)
        fresh = path.with_suffix(".sign-new")
        with suppress(OSError, ConfigError):
            remove(fresh)
            with open(fresh, "x", encoding="utf-8", opener=open_file) as file:
                file.write(msgspec.json.encode(beat).decode())
            replace(fresh, path)

    def others(self) -> list[Heartbeat]:
        return [beat for log in self._others if (beat := read(log))]

    def clear(self) -> None:
        with suppress(OSError, ConfigError):
            remove(beside(self.log))

    def write(self, text: str) -> None:
        with suppress(OSError, ConfigError), open(self.log, "a", encoding="utf-8", opener=open_file) as file:
            file.write(text)


def beside(log: Path) -> Path:
    """The file of a rank's heartbeat.  A run that ended unexpectedly leaves it behind."""
    return log.with_suffix(".sign")


def read(log: Path) -> Heartbeat | None:
    """The heartbeat beside the log of a rank, or None."""
    with suppress(OSError, ValueError, RecursionError, ConfigError):
        return msgspec.json.decode(read_text(beside(log)), type=Heartbeat)
    return None
