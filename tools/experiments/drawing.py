"""The picture of an experiment: curves over the epochs, the speed-up over a number, or accuracy over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.experiments.declaring import Row
from tools.experiments.measuring import CURVES, MEASURES, Results, line_of, stopping_line

BESIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 8, "frameon": False}  # of a legend


def draw(results: Results, rows: Sequence[Row], path: Path, title: str) -> None:
    """Write the PNG; rows without a finished run are left out."""
    e, shown = results.experiment, [row for row in rows if results.of(row.key)]
    if not shown:
        return
    groups = list(dict.fromkeys(row.group for row in shown))
    size = (7, 5) if e.against else (14, 6) if e.plane else (2 + 6 * len(e.curves), 4.5 * len(groups))
    figure = Figure(figsize=size, layout="constrained")
    if e.against:
        _speed(figure.subplots(), results, shown)
    elif e.plane:
        _plane(figure.subplots(), results, shown)
    else:
        panels = figure.subplots(len(groups), len(e.curves), squeeze=False)
        for group, line in zip(groups, panels, strict=True):
            for quantity, panel in zip(e.curves, line, strict=True):
                _curves(panel, results, [row for row in shown if row.group == group], quantity)
                panel.set_title(group)
            drawn = [panel.get_legend_handles_labels() for panel in line]
            named = {label: handle for pairs in drawn for handle, label in zip(*pairs, strict=True)}  # on any panel
            line[-1].legend(named.values(), named.keys(), **BESIDE)
    for panel in figure.axes:
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, format="png", dpi=110)


def _curves(panel: Axes, results: Results, rows: Sequence[Row], quantity: str) -> None:
    """The mean of every row over its seeds, with a band of one standard deviation."""
    colours = colormaps["tab10" if len(rows) <= 10 else "tab20"]
    for number, row in enumerate(rows):
        series = [run.series(quantity) for copies in results.of(row.key).values() for run in copies]
        known = {n: [v for v in values if v is not None] for n, values in enumerate(zip(*series, strict=True), 1)}
        points = [(n, *_summary(values)) for n, values in known.items() if values]
        if points:
            epochs, means, spread = map(np.array, zip(*points, strict=True))
            colour, style = colours(number % colours.N), "--" if row.exact else "-"
            panel.plot(epochs, means, style, color=colour, label=row.label, linewidth=1.5)
            panel.fill_between(epochs, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
    if CURVES[quantity].log:
        panel.set_yscale("log")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="epoch", ylabel=CURVES[quantity].heading)


def _summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _speed(panel: Axes, results: Results, rows: Sequence[Row]) -> None:
    """Median speed-up of every number of ranks over the groups, and dashed the machine's limit."""
    for number, stages in enumerate(sorted({row.stages for row in rows if row.serial})):
        for measure, style in (("speedup", "o-"), ("limit", "--")):
            found = {float(r.group): results.values(r, measure) for r in rows if r.serial and r.stages == stages}
            points = sorted((x, statistics.median(values.values())) for x, values in found.items() if values)
            label = f"{stages} ranks" if measure == "speedup" else f"limit: {stages} copies at once"
            panel.plot([x for x, _ in points], [y for _, y in points], style, color=f"C{number}", label=label)
    panel.set(xlabel=results.experiment.against, ylabel="speed-up over one rank")
    panel.legend(frameon=False)


def _plane(panel: Axes, results: Results, rows: Sequence[Row]) -> None:
    """Every measured row at its median time, with one standard deviation; lines join exact training."""
    measure = results.experiment.plane
    firsts: dict[tuple[str, int, str], Row] = {}
    for row in rows:
        if row.exact:
            firsts.setdefault(line_of(row), row)
    for (line, first), style in zip(firsts.items(), cycle(("--", "-.", ":")), strict=False):
        if points := stopping_line(results, line):  # not all are counted, for too few cores
            means = [statistics.mean(scores.values()) for _, scores in points]
            panel.plot([seconds for seconds, _ in points], means, style, color="0.3", label=first.label)
    colours = colormaps["tab20"]
    for number, row in enumerate(row for row in rows if not results.counted(row)):
        found, seconds = list(results.values(row, measure).values()), results.seconds(row)
        if found and seconds is not None:
            form, colour = ("o", "0.3") if row.exact else ("D", colours(number % colours.N))
            label = None if row.exact else f"{row.label} (n = {len(found)})"
            panel.errorbar(seconds, *_summary(found), fmt=form, color=colour, label=label, capsize=2)
    panel.set(xlabel="training and refresh (s)", ylabel=MEASURES[measure].heading)
    panel.legend(**BESIDE)
