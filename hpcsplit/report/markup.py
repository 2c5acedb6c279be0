"""HTML by function calls: what is no Markup already is text, and is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from hpcsplit.host.printable import printable

_VOID = ("meta", "link", "img")


class Markup(str):
    """HTML as it stands."""


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """<name attributes>children</name>; `class_` is class, and a _ within a name is a -."""
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    """The children one after another."""
    return Markup("".join(child if isinstance(child, Markup) else _escaped(child) for child in children))


def _escaped(value: object) -> str:
    return html.escape(printable(str(value)))


def table(columns: Sequence[object], rows: Iterable[Sequence[object]], *, words: bool = False) -> Markup:
    """A table that scrolls sideways where it has no room; the first column names the row, the others are numbers.

    Args:
        words: the others are words.
    """
    head = element("tr", *(element("th", column, scope="col") for column in columns))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in others))
        for first, *others in rows
    ]
    kind = "words" if words else "numbers"
    inner = element("table", element("thead", head), element("tbody", *body), class_=kind)
    return element("div", inner, class_="wide", tabindex="0")


def bullets(items: Iterable[object], **attributes: object) -> Markup:
    return element("ul", *(element("li", item) for item in items), **attributes)
