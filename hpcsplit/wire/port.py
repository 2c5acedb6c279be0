"""What a stage may say to the world.

A stage program is a generator.  It yields one of the verbs below and is sent the answer back; who answers (one process
that runs all stages in lockstep, or MPI) is not its business.  A training method may use `Send` and `Recv` only;
`Share`, `Agree` and `Meter` belong to the engine.

Order is first-in-first-out per (edge, name).  A `Send` takes the tensor's value at once and returns; a `Recv` waits.
Never yield inside a `with` block: in lockstep the block's state would leak into the other stages.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch

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
    """Running totals of one rank.

    `exposed_s` counts a message's own cost: putting it together, and waiting for it after the peer had sent it.
    `imbalance_s` counts waiting before that, when the peer was not ready.  `turn_s` is the time a stage had the process
    to itself, where stages take turns in one.  Bytes are payload bytes per neighbour side.
    """

    sent_bytes_prev: int = 0
    sent_bytes_next: int = 0
    messages: int = 0
    exposed_s: float = 0.0
    imbalance_s: float = 0.0
    turn_s: float = 0.0

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


def describe_mismatch(rank: int, wanted: Recv, got_name: str, got: torch.Tensor, got_index: int) -> str | None:
    """None when the message is the one wanted; otherwise the sentence to fail with."""
    peer = rank + wanted.side
    if got_name != wanted.name:
        return f"stage {rank} waits for '{wanted.name}' from stage {peer}, got '{got_name}'"
    if tuple(got.shape) != tuple(wanted.shape) or got.dtype != wanted.dtype:
        return (
            f"stage {rank} waits for '{wanted.name}' of shape {tuple(wanted.shape)} ({wanted.dtype}) "
            f"from stage {peer}, got {tuple(got.shape)} ({got.dtype})"
        )
    if got_index != wanted.index:
        return f"stage {rank} waits for '{wanted.name}' number {wanted.index} from stage {peer}, got number {got_index}"
    return None
