"""What the engine can be told to do next.  Rank 0 decides; every rank obeys the broadcast action.

Epochs count from 0 in the code and in records.jsonl, and from 1 in every text for people.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["serial", "parallel"]


@dataclass(frozen=True)
class Refresh:
    """Forward all training samples and let the auxiliary variables start anew from the activations."""

    epoch: int
    recomputed: bool = False

    def __str__(self) -> str:
        why = "; the checkpoint has none" if self.recomputed else ""
        return f"refresh the auxiliary variables before epoch {self.epoch + 1}{why}"


@dataclass(frozen=True)
class Train:
    """One epoch over all training samples."""

    epoch: int
    phase: Phase
    parallel_epochs: int  # parallel epochs before this one
    recomputed: bool = False

    def __str__(self) -> str:
        return f"train epoch {self.epoch + 1}, {self.phase}"


@dataclass(frozen=True)
class Save:
    """Write a checkpoint after an epoch."""

    epoch: int
    need_aux: bool

    def __str__(self) -> str:
        return f"save a checkpoint after epoch {self.epoch + 1}"


@dataclass(frozen=True)
class Stop:
    """Leave the run; `done` says whether all epochs are finished."""

    done: bool
    reason: str

    def __str__(self) -> str:
        return f"stop: {self.reason}"


Action = Refresh | Train | Save | Stop
_KINDS: dict[str, type] = {kind.__name__: kind for kind in (Refresh, Train, Save, Stop)}


def to_json(action: Action) -> dict[str, Any]:
    return {"do": type(action).__name__, **asdict(action)}


def from_json(message: dict[str, Any]) -> Action:
    fields = dict(message)
    return _KINDS[fields.pop("do")](**fields)
