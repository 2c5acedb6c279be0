"""Text that may come from a file, a folder's name or another host, for terminals, pages and tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, marks that turn text around, halves of letters, odd line ends
_FORMULA = "=+-@＝＋－＠"


def printable(text: str, keep: str = "\n\t") -> str:
    """The text with what would move a cursor, turn words around, or be no UTF-8 written as in a program: \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter not in keep and unicodedata.category(letter) in _HIDDEN
        else letter
        for letter in text
    )


def cell(value: object) -> object:
    """A value of a table that a spreadsheet may open: text never becomes a formula, numbers stay what they are."""
    if not isinstance(value, str):
        return value
    text = printable(value, keep="")
    return f"'{text}" if text.lstrip()[:1] in tuple(_FORMULA) else text


def spans(numbers: Sequence[int]) -> str:
    """Whole numbers in short: 0, 1, 2, 5 are "0-2,5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
