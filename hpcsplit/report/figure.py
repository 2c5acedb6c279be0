"""Figures of the page and of the picture: the same panels as inline SVG, or side by side in one file.

Text of an SVG stays text, nothing is fetched, and no name in one drawing collides with another's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from hpcsplit.files.atomic import write_bytes
from hpcsplit.report.times import Runs

WIDTH, HEIGHT, BAR = 5.2, 3.3, 0.55  # inches of a panel and of a bar; on a telephone its text is still 10 pixels high
LOOK: Any = {"font.size": 11, "axes.titlesize": 11, "svg.fonttype": "none", "axes.formatter.min_exponent": 5}
DASHES = {"-": "none", "--": "6 3", ":": "2 2", "-.": "6 2 2 2"}
MARKS = {"o": "●", "^": "▲"}
_NOTHING = {"Creator": None, "Date": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Panel:
    """One pair of axes: `draw` puts curves or bars there and gives those that stand in a legend, by their labels."""

    draw: Callable[[Any], Sequence[Any]]
    heading: str = ""
    rows: int = 0  # of bars, where it has bars


@dataclass(frozen=True)
class Chart:
    """A figure; `make` gives those panels of runs that have anything to show, or is "module:function" of what does."""

    heading: str
    caption: str  # what is shown, and what to look for
    absent: str  # the sentence where no run has the quantity
    make: Callable[[Runs], Sequence[Panel]] | str
    shared: bool = True  # all panels have one scale
    pictured: bool = False  # in the picture, too

    def panels(self, runs: Runs) -> Sequence[Panel]:
        """Those that have anything to show."""
        make = resolve_name(self.make) if isinstance(self.make, str) else self.make
        return make(runs) if any(runs.values()) else ()

    def draw(self, runs: Runs, new: Callable[[Panel], Any]) -> list[tuple[Any, Sequence[Any]]]:
        """Draw the panels on axes that `new` makes; these, each with what stands in its legend."""
        drawn = [(new(panel), panel) for panel in self.panels(runs)]
        legends = [panel.draw(axes) for axes, panel in drawn]
        panels = [axes for axes, _ in drawn]
        for axes, panel in drawn:
            axes.set_title(panel.heading, parse_math=False)
            if self.shared and any(each.get_yscale() == "log" for each in panels):
                axes.set_yscale("log")
        limits = [axes.get_ylim() for axes in panels]
        for axes in panels if self.shared else ():
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        return list(zip(panels, legends, strict=True))


class Sample(NamedTuple):
    """What stands in a legend of the page for a curve, a filled box or points (`shape` is their mark)."""

    label: str
    colour: str
    shape: str
    dashes: str | None = None


def look() -> AbstractContextManager[None]:
    """Draw in the look of the page."""
    from matplotlib import rc_context

    return rc_context(LOOK)


def figure_of(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def drawn(chart: Chart, runs: Runs) -> tuple[list[Markup], list[Sample]]:
    """The panels as SVG, and the samples of their common legend."""
    with look():
        panels = chart.draw(runs, lambda one: figure_of(WIDTH, 1.0 + BAR * one.rows if one.rows else HEIGHT)[1])
        samples = {artist.get_label(): artist for _, legend in panels for artist in legend}
        drawings = [inline(axes.figure, f"{chart.heading} {axes.get_title()}".strip()) for axes, _ in panels]
    return drawings, [_sample(artist) for artist in samples.values()]


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format of the path's suffix."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix.removeprefix("."), dpi=110)
    write_bytes(path, image.getbuffer())


def inline(figure: Any, description: str) -> Markup:
    """A figure as an <svg> element to be put into a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=_NOTHING, dpi=144)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
    svg = re.sub(r'<metadata>.*?</metadata>| (xmlns(:\w+)?|version)="[^"]*"|(?<=>)\s+(?=<)', "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", svg)
    return Markup(svg.replace("<svg", '<svg role="img"', 1).replace(">", f"><title>{escape(description)}</title>", 1))


def _sample(artist: Any) -> Sample:
    from matplotlib.colors import to_hex

    if hasattr(artist, "get_facecolor"):
        return Sample(artist.get_label(), to_hex(artist.get_facecolor(), keep_alpha=True), "box")
    dashes = DASHES.get(artist.get_linestyle())
    shape = "line" if dashes else MARKS[artist.get_marker()]
    return Sample(artist.get_label(), to_hex(artist.get_color()), shape, dashes)
