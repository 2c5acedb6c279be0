"""The processes of a run, as one of them sees them: MPI's ranks (wire.mpi), or this process alone (wire.lockstep)."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from hpcsplit.host.stopping import leave
from hpcsplit.wire.port import Program


class World(ABC):
    """Who and where this process is, which stages it has, and how it talks with the others.

    What is not abstract is what holds of a process that nobody has started and that waits for nobody.

    Attributes:
        rank, size: of this process among all.
        local_rank, local_size: of this process among those of its node.
        library: the MPI library in words, "none" without one.
        count: stages of all processes; each has one, or a process that is alone has all.
        stages: those of this process.
        device: where messages are received to.
        beats: grows as this process gets on; another thread may read it.
        idle: called while this process waits for a message; does a little work, or answers that there is none.
    """

    def __init__(
        self, count: int, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1, library: str = "none"
    ) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.host, self.library = socket.gethostname(), library
        self.count, self.stages = count, range(rank, rank + count // size)
        self.device, self.beats = torch.device("cpu"), 0
        self.idle: Callable[[], bool] = lambda: False

    @abstractmethod
    def share(self, value: Any) -> list[Any]:
        """Every process's JSON value, by rank."""

    @abstractmethod
    def run(self, programs: Sequence[Program]) -> list[Any]:
        """Run the programs of this process's stages to their end and return their results."""

    def progress(self) -> None:
        """Move what is on its way; returns at once.  To be called between blocks."""
        self.beats += 1

    def waits(self) -> str:
        """What this process waits for, from whom and since when; "" when for nobody.  For another thread to ask."""
        return ""

    def orphaned(self) -> str:
        """Who has gone that has started this process, in words; "" while they live."""
        return ""

    def abort(self, code: int) -> NoReturn:
        """End every process with this exit code, now; from any thread."""
        leave(code)

    def close(self) -> None:  # noqa: B027
        """Take leave; every process must come here."""
