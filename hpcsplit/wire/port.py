"""What a stage may say to the world, and the world: the processes of a run, as one of them sees them.

A stage program is a generator.  It yields one of the verbs below and is sent the answer back; who answers (one process
that runs all stages in lockstep, or MPI) is not its business.  A training method may use `Send` and `Recv` only;
`Share`, `Agree` and `Meter` belong to the engine.

Order is first-in-first-out per (edge, name).  A `Send` takes the tensor's value at once and returns; a `Recv` waits.
Never yield inside a `with` block: in lockstep the block's state would leak into the other stages.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch

from hpcsplit.host.stopping import leave

PREV: Literal[-1] = -1
NEXT: Literal[1] = 1
Side = Literal[-1, 1]
MAX_NAME_BYTES = 24
MAX_DIMENSIONS = 6


@dataclass(frozen=True)
class Send:
    """Give the neighbour on `side` a copy of `tensor` under `name`.  `index` numbers a mini- or micro-batch."""

    side: Side
    name: str
    tensor: torch.Tensor
    index: int = 0

    def __post_init__(self) -> None:
        assert len(self.name.encode()) <= MAX_NAME_BYTES, self.name
        assert self.tensor.dim() <= MAX_DIMENSIONS, tuple(self.tensor.shape)


@dataclass(frozen=True)
class Recv:
    """Wait for `name` from the neighbour on `side`; the answer is a tensor of exactly `shape` and `dtype`."""

    side: Side
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    index: int = 0


@dataclass(frozen=True)
class Share:
    """Give a JSON value to all ranks; the answer is the list of every rank's value, by rank.  A meeting point."""

    value: Any = None


@dataclass(frozen=True)
class Agree:
    """Tell all ranks a level (0: nothing) without waiting for them.

    The answer is the highest level that any rank gave `agree_lag` calls ago, or 0 before so many calls: the same on
    every rank in the same call, so that a signal that one rank received is obeyed by all at the same step.
    """

    level: int = 0


def agree_lag(stages: int) -> int:
    """After how many calls an `Agree` is answered; a first stage may be so many steps ahead of the last one."""
    return max(2, stages)


@dataclass(frozen=True)
class Meter:
    """The answer is a `Traffic`: what this rank's messages have cost since the start."""


@dataclass
class Traffic:
    """Running totals of one rank; bytes are payload bytes per neighbour side."""

    sent_bytes_prev: int = 0
    sent_bytes_next: int = 0
    messages: int = 0
    exposed_s: float = 0.0  # a message's own cost: putting it together, waiting for it after the peer had sent it
    imbalance_s: float = 0.0  # waiting before that, when the peer was not ready
    turn_s: float = 0.0  # the time a stage had the process to itself, where stages take turns in one

    @property
    def sent_bytes(self) -> int:
        return self.sent_bytes_prev + self.sent_bytes_next

    def count(self, side: Side, size_bytes: int) -> None:
        if side == PREV:
            self.sent_bytes_prev += size_bytes
        else:
            self.sent_bytes_next += size_bytes
        self.messages += 1


Verb = Send | Recv | Share | Agree | Meter
Program = Generator[Verb, Any, Any]


def describe_mismatch(rank: int, wanted: Recv, got: torch.Tensor, got_index: int) -> str | None:
    """None when a message of that name is the one wanted; otherwise the sentence to fail with."""
    peer = rank + wanted.side
    if tuple(got.shape) != tuple(wanted.shape) or got.dtype != wanted.dtype:
        return (
            f"stage {rank} waits for '{wanted.name}' of shape {tuple(wanted.shape)} ({wanted.dtype}) "
            f"from stage {peer}, got {tuple(got.shape)} ({got.dtype})"
        )
    if got_index != wanted.index:
        return f"stage {rank} waits for '{wanted.name}' number {wanted.index} from stage {peer}, got number {got_index}"
    return None


class World(ABC):
    """Who and where this process is, which stages it has, and how it talks with the others: as one of MPI's ranks
    (wire/mpi.py), or alone (wire/lockstep.py).

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
        orphaned: who has gone that has started this process, in words; "" while they live.
    """

    def __init__(
        self, count: int, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1, library: str = "none"
    ) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.host, self.library = socket.gethostname(), library
        self.count, self.stages = count, range(rank, rank + count // size)
        self.device, self.beats = torch.device("cpu"), 0
        self.idle: Callable[[], bool] = lambda: False
        self.orphaned: Callable[[], str] = lambda: ""

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

    def abort(self, code: int) -> NoReturn:
        """End every process with this exit code, now; from any thread."""
        leave(code)

    def close(self, *, last: bool = True) -> None:  # noqa: B027
        """Take leave; every process must come here.  `last` says that no other world follows in them."""
