"""The findings as a table for people, and as JSON."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Sequence
from typing import TextIO

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpcsplit import __version__
from hpcsplit.doctor.finding import Finding, Status, worst
from hpcsplit.report.terminal import terminal_of, terminal_width

COLOURS = {Status.GOOD: "green", Status.SLOW: "yellow", Status.BROKEN: "bold red"}
WIDTH = 120  # columns, where nobody's terminal sets them
_ENDS = {
    Status.GOOD: "Nothing is slow or broken.",
    Status.SLOW: "Nothing is broken; a run works, but could be faster.",
    Status.BROKEN: "Something is broken; the lines that begin with -> say what to do.",
}


def as_json(findings: Sequence[Finding]) -> str:
    """One object: the worst status, and every finding with the numbers behind it."""
    status = worst([finding.status for finding in findings])
    return json.dumps(
        {
            "hpcsplit": __version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "status": status,
            "findings": msgspec.to_builtins(findings),
        },
        indent=1,
    )


def show(findings: Sequence[Finding], stream: TextIO | None = None) -> None:
    """A line for each finding; below one that is not good, what to do."""
    stream = stream or sys.stdout
    terminal = terminal_of(stream)
    width = terminal_width(terminal) if terminal else WIDTH
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("status", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    topic = ""
    for finding in findings:
        table.add_row(_status(finding), "" if finding.topic == topic else finding.topic, Text(finding.found))
        topic = finding.topic
        if finding.advice:
            table.add_row("", "", Text(f"-> {finding.advice}", style=COLOURS[finding.status]))
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=bool(terminal), highlight=False, emoji=False)
    console.print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    end = _ENDS[worst([finding.status for finding in findings])]
    print("\n".join(line for line in lines if line), f"\n{end}", sep="\n", file=stream)


def _status(finding: Finding) -> Text:
    return Text(str(finding.status), style=COLOURS[finding.status])
