"""The curves of one run, or of several side by side, as one picture: the figures of the page that are `pictured`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcsplit.report.charts import SECTIONS
from hpcsplit.report.figure import Chart, look, save
from hpcsplit.report.lines import shortened
from hpcsplit.report.times import Runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")


def draw(runs: Runs, path: Path | str, title: str) -> None:
    """Write a picture of the figures that are `pictured`; the path's suffix is one of FORMATS."""
    charts = [chart for section in SECTIONS.values() for chart in section if chart.pictured]
    figure = figure_of_charts(runs, charts, title)
    with look():
        save(figure, Path(path))


def figure_of_charts(runs: Runs, charts: Sequence[Chart], title: str) -> Figure:
    """All panels of these figures, with a legend below each panel, where it hides nothing."""
    from matplotlib.figure import Figure

    count = sum(len(chart.panels(runs)) for chart in charts)
    columns = min(max(1, count), 2 if len(runs) == 1 else 3)
    rows = max(1, -(-count // columns))
    places = iter(range(1, count + 1))
    with look():
        figure = Figure(figsize=(6 * columns, 4.7 * rows), layout="constrained")
        figure.suptitle(title if count else f"{title}: no data", fontsize=14, parse_math=False)
        for chart in charts:
            for axes, artists in chart.draw(runs, lambda _: figure.add_subplot(rows, columns, next(places))):
                axes.set_title(f"{chart.heading}: {axes.get_title()}".removesuffix(": "), parse_math=False)
                box = axes.legend(
                    artists,
                    [shortened(artist.get_label()) for artist in artists],
                    loc="upper center",
                    bbox_to_anchor=(0.5, -0.14),
                    ncols=4 if len(runs) == 1 else 2,
                    fontsize=9,
                    frameon=False,
                )
                for text in box.get_texts():
                    text.set_parse_math(False)
    return figure
