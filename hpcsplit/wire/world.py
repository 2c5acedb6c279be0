"""The processes of a run, as one of them sees them: MPI's ranks (wire.mpi), or this process alone (wire.lockstep)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import torch

from hpcsplit.wire.port import Program


class World(Protocol):
    """Who and where this process is, which stages it has, and how it talks with the others.

    Attributes:
        rank, size: of this process among all.
        local_rank, local_size: of this process among those of its node.
        library: the MPI library in words, "none" without one.
        count: stages of all processes.
        stages: those of this process.
        device: where messages are received to.
        beats: grows as this process gets on; another thread may read it.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    library: str
    count: int
    stages: range
    device: torch.device
    beats: int

    def share(self, value: Any) -> list[Any]:
        """Every process's JSON value, by rank."""

    def run(self, programs: Sequence[Program]) -> list[Any]:
        """Run the programs of this process's stages to their end and return their results."""

    def progress(self) -> None:
        """Move what is on its way; returns at once.  To be called between blocks."""

    def waits(self) -> str:
        """What this process waits for, from whom and since when; "" when for nobody.  For another thread to ask."""

    def orphaned(self) -> str:
        """Who has gone that has started this process, in words; "" while they live."""

    def abort(self, code: int) -> NoReturn:
        """End every process with this exit code, now; from any thread."""

    def close(self) -> None:
        """Take leave; every process must come here."""
