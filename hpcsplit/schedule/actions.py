"""What the engine can be told to do next.  Rank 0 decides; every rank obeys the broadcast action.

Epochs count from 0 in the code and in records.jsonl, and from 1 in every text for people.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Phase = Literal["serial", "parallel"]


@dataclass(frozen=True)
class Refresh:
    """Forward all training samples and let the auxiliary variables start anew from the activations; `missing` says:
    only those that the checkpoint did not have."""

    epoch: int
    recomputed: bool = False
    missing: bool = False

    def __str__(self) -> str:
        which = "missing auxiliary variables" if self.missing else "auxiliary variables"
        why = "; the checkpoint has none" if self.recomputed and not self.missing else ""
        return f"refresh the {which} before epoch {self.epoch + 1}{why}"


@dataclass(frozen=True)
class Train:
    """One epoch over all training samples, or the rest of one after `first_step` steps.  There were `parallel_epochs`
    before it; `goes_on` says that the next one is parallel, too, if this one is, `last` that there is none."""

    epoch: int
    phase: Phase
    parallel_epochs: int
    recomputed: bool = False
    first_step: int = 0
    goes_on: bool = False
    last: bool = False

    def __str__(self) -> str:
        rest = f", after step {self.first_step}" if self.first_step else ""
        return f"train epoch {self.epoch + 1}, {self.phase}{rest}"


@dataclass(frozen=True)
class Trained:
    """How a `Train` ended, the same on every rank: after `step` steps, or at the epoch's end (0); and whether any rank
    has been told to stop."""

    step: int = 0
    stop: bool = False


@dataclass(frozen=True)
class Save:
    """Write a checkpoint after an epoch, or within it after `step` steps; `phases` are the initials of those that are
    decided, where that happens during the run.  It is that of the `best` epoch so far."""

    epoch: int
    need_aux: bool
    step: int = 0
    recomputed: bool = False
    phases: str = ""
    best: bool = False

    @property
    def epochs_done(self) -> int:
        """Finished epochs."""
        return self.epoch if self.step else self.epoch + 1

    def __str__(self) -> str:
        return f"save a checkpoint after {f'step {self.step} of ' if self.step else ''}epoch {self.epoch + 1}"


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
    action: Action = _KINDS[message["do"]](**{name: value for name, value in message.items() if name != "do"})
    return action
