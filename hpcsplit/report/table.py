"""A table as plain text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A line for each row, as Markdown has it; the first column stands on the left, the others on the right."""
    grid = Table(box=box.MARKDOWN)
    for column in columns:
        grid.add_column(Text(column), justify="right" if grid.columns else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*map(Text, row))
    return printed(grid, 10_000)  # columns: no cell is folded or cut


def printed(grid: Table, width: int, *, coloured: bool = False) -> str:
    """What rich makes of it, without empty lines and without spaces at the ends of lines."""
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=coloured, highlight=False, emoji=False).print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())
