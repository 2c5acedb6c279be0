"""The picture of an experiment: curves over the epochs, the speed-up over a number, or accuracy over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.reproductions.declaring import Against, Plane, Row
from tools.reproductions.measuring import CURVES, MEASURES, Results, line_of, stopping_line


def draw(results: Results, rows: Sequence[Row], path: Path, title: str) -> None:
    """Write the PNG; rows without a finished run are left out."""
    shown = [row for row in rows if results.of(row.key)]
    if not shown:
        return
    if isinstance(results.experiment.picture, Against):
        figure = Figure(figsize=(7, 5), layout="constrained")
        _speed(figure.subplots(), results, shown, results.experiment.picture.axis)
    elif isinstance(results.experiment.picture, Plane):
        figure = Figure(figsize=(14, 6), layout="constrained")
        _plane(figure.subplots(), results, shown, results.experiment.picture.measure)
    else:
        groups = list(dict.fromkeys(row.group for row in shown))
        quantities = results.experiment.picture.quantities
        figure = Figure(figsize=(2 + 6 * len(quantities), 4.5 * len(groups)), layout="constrained")
        panels = figure.subplots(len(groups), len(quantities), squeeze=False)
        for group, line in zip(groups, panels, strict=True):
            members = [row for row in shown if row.group == group]
            for quantity, panel in zip(quantities, line, strict=True):
                _curves(panel, results, members, quantity)
                panel.set_title(group)
            drawn = [panel.get_legend_handles_labels() for panel in line]
            named = {label: handle for pairs in drawn for handle, label in zip(*pairs, strict=True)}  # on any panel
            line[-1].legend(
                named.values(), named.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False
            )
    figure.suptitle(title)
    figure.savefig(path, format="png", dpi=110)


def _curves(panel: Axes, results: Results, rows: Sequence[Row], quantity: str) -> None:
    """The mean of every row over its seeds, with a band of one standard deviation."""
    colours = colormaps["tab10" if len(rows) <= 10 else "tab20"]
    for number, row in enumerate(rows):
        series = [CURVES[quantity].of(run) for copies in results.of(row.key).values() for run in copies]
        known = [
            (epoch, [v for v in values if v is not None])
            for epoch, values in enumerate(zip(*series, strict=True), 1)
            if any(v is not None for v in values)
        ]
        if not known:
            continue
        epochs, values = [epoch for epoch, _ in known], [found for _, found in known]
        means = [statistics.mean(v) for v in values]
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        colour, style = colours(number % colours.N), "--" if row.exact else "-"
        panel.plot(epochs, means, style, color=colour, label=row.label, linewidth=1.5)
        low, high = [[m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1)]
        panel.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    if CURVES[quantity].log:
        panel.set_yscale("log")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch")
    panel.set_ylabel(CURVES[quantity].heading)
    panel.grid(alpha=0.3)


def _speed(panel: Axes, results: Results, rows: Sequence[Row], axis: str) -> None:
    """Median speed-up of every number of ranks over the groups, and dashed the machine's limit."""
    for number, stages in enumerate(sorted({row.stages for row in rows if row.serial})):
        for measure, style in (("speedup", "o-"), ("limit", "--")):
            found = {float(r.group): results.values(r, measure) for r in rows if r.serial and r.stages == stages}
            points = sorted((x, statistics.median(values.values())) for x, values in found.items() if values)
            label = f"{stages} ranks" if measure == "speedup" else f"limit: {stages} copies at once"
            panel.plot([x for x, _ in points], [y for _, y in points], style, color=f"C{number}", label=label)
    panel.set_xlabel(axis)
    panel.set_ylabel("speed-up over one rank")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)


def _plane(panel: Axes, results: Results, rows: Sequence[Row], measure: str) -> None:
    """Every measured row at its median time, with one standard deviation; lines join exact training."""
    lines = dict.fromkeys(line_of(row) for row in rows if row.exact)
    for line, style in zip(lines, cycle(("--", "-.", ":")), strict=False):
        if not (points := stopping_line(results, line)):
            continue  # all counted: there are too few cores
        first = next(row for row in rows if row.exact and line_of(row) == line)
        panel.plot(*zip(*points, strict=True), style, color="0.3", label=first.label)
    colours = colormaps["tab20"]
    for number, row in enumerate(row for row in rows if not results.counted(row)):
        values, seconds = results.values(row, measure), results.values(row, "seconds")
        if not values or not seconds:
            continue
        found = list(values.values())
        panel.errorbar(
            statistics.median(seconds.values()),
            statistics.mean(found),
            statistics.stdev(found) if len(found) > 1 else 0.0,
            fmt="o" if row.exact else "D",
            color="0.3" if row.exact else colours(number % colours.N),
            label=None if row.exact else f"{row.label} (n = {len(found)})",
            capsize=2,
        )
    panel.set_xlabel("training and refresh (s)")
    panel.set_ylabel(MEASURES[measure].heading)
    panel.grid(alpha=0.3)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
