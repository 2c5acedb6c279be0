"""What was found out about one thing, whether that is well, what to do when it is not; and all of it, shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TextIO

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from hpcsplit import __version__
from hpcsplit.report.lines import printed
from hpcsplit.report.terminal import terminal_of, terminal_width


class Status(StrEnum):
    """From the best to the worst."""

    GOOD = "good"
    SLOW = "slow"  # a run works, but not as well as it could
    BROKEN = "broken"  # a run fails, or does not do what was asked for


WIDTH = 120  # columns, where nobody's terminal sets them
_SHOWN = {  # the colour, and the sentence at the end when it is the worst one
    Status.GOOD: ("green", "Nothing is slow or broken."),
    Status.SLOW: ("yellow", "Nothing is broken; a run works, but could be faster."),
    Status.BROKEN: ("bold red", "Something is broken; the lines that begin with -> say what to do."),
}


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


def judged(
    topic: str, found: str, problems: Sequence[str], data: dict[str, Any], status: Status = Status.SLOW
) -> Finding:
    """A finding that has this status when there are problems; its advice is what to do about each."""
    return Finding(topic, found, status if problems else Status.GOOD, "; ".join(problems), data)


def worst(findings: Sequence[Finding]) -> Status:
    """The worst status; good when there are no findings."""
    return max((finding.status for finding in findings), key=list(Status).index, default=Status.GOOD)


def as_json(findings: Sequence[Finding]) -> str:
    """One object: the worst status, and every finding with the numbers behind it."""
    values = {
        "hpcsplit": __version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "status": worst(findings),
        "findings": msgspec.to_builtins(findings),
    }
    return json.dumps(values, indent=1)


def show(findings: Sequence[Finding], stream: TextIO | None = None) -> None:
    """A line for each finding; below one that is not good, what to do."""
    stream = stream or sys.stdout
    terminal = terminal_of(stream)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("status", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    topic = ""
    for finding in findings:
        colour, _ = _SHOWN[finding.status]
        what = "" if finding.topic == topic else finding.topic
        table.add_row(Text(finding.status, style=colour), what, Text(finding.found))
        topic = finding.topic
        if finding.advice:
            table.add_row("", "", Text(f"-> {finding.advice}", style=colour))
    text = printed(table, terminal_width(terminal) if terminal else WIDTH, coloured=bool(terminal))
    print(text, f"\n{_SHOWN[worst(findings)][1]}", sep="\n", file=stream, flush=True)
