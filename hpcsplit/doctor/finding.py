"""What was found out about one thing, whether that is well, and what to do when it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    GOOD = "good"
    SLOW = "slow"  # a run works, but not as well as it could
    BROKEN = "broken"  # a run fails, or does not do what was asked for


_RISING = (Status.GOOD, Status.SLOW, Status.BROKEN)


@dataclass(frozen=True)
class Finding:
    """One line of the answer; `advice` says what to do and is empty exactly when the status is good."""

    topic: str
    found: str
    status: Status = Status.GOOD
    advice: str = ""
    data: dict[str, Any] = field(default_factory=dict)  # the numbers behind `found`, with units in their names

    def __post_init__(self) -> None:
        assert (self.status == Status.GOOD) == (not self.advice), f"{self.topic}: {self.status} with {self.advice!r}"


def judged(topic: str, found: str, problems: Sequence[tuple[Status, str]], data: dict[str, Any]) -> Finding:
    """A finding with the worst of several problems' statuses and the advice of all."""
    return Finding(topic, found, worst([status for status, _ in problems]), "; ".join(a for _, a in problems), data)


def worst(statuses: Sequence[Status]) -> Status:
    """The worst of them; good when there are none."""
    return max(statuses, key=_RISING.index, default=Status.GOOD)
