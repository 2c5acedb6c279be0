"""Curves over the epochs, which count from 1, as on the console; and test accuracy over the time of learning.

One run has a colour for each of its curves in one panel.  Several have a colour for each run, the same in every figure,
and a panel for each kind of curve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from hpcsplit.report.figure import Panel
from hpcsplit.report.times import Runs, learning_s, of_phase
from hpcsplit.run.records import EpochRecord, flat

Value = str | Callable[[EpochRecord], float | None]  # a name of flat(record), or what is worked out
Quantity = tuple[str, Value, str]  # its label, its value in an epoch, its line or its points
Quantities = Sequence[Quantity] | Callable[[Runs], Sequence[Quantity]]
Scale = Literal["linear", "log", "log if wide", "log with sign"]

# No gap where an epoch has no evaluation.
EVALUATED = (
    *("loss", "test_loss", "test_loss_ema", "train_accuracy"),
    *("test_accuracy", "test_accuracy_bn", "test_accuracy_ema", "validation_accuracy"),
)
# Told apart by people who see no red or no green (Okabe and Ito 2008), without their yellow, which is faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = ("o", "^")  # in place of a line, for what is measured now and then
MANY_EPOCHS = 60  # from which on markers would hide the lines
BAND = "#4c72b0"
WIDE_RANGE = 30.0  # losses that span more than this factor are drawn on a log scale


class Line(NamedTuple):
    """One curve: its values by epoch."""

    label: str
    colour: Any
    style: str
    points: Mapping[int, float]


def colour_of(place: int, count: int) -> Any:
    """The colour of one of `count` things that have no order: runs, or quantities of one run."""
    from matplotlib import colormaps

    return COLOURS[place] if count <= len(COLOURS) else colormaps["turbo"](place / (count - 1))


def shade_of(place: int, count: int) -> Any:
    """The colour of one of `count` things in a row: stages."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * place / max(1, count - 1))


def curves(
    unit: str, quantities: Quantities, *, scale: Scale = "linear", factor: float = 1.0, colour: Any = colour_of
) -> Callable[[Runs], list[Panel]]:
    """What makes the panels of quantities of an epoch: one for one run, one for each quantity of several.

    Args:
        factor: by which values are multiplied.
        colour: of the quantities of one run.
    """

    def panels(runs: Runs) -> list[Panel]:
        chosen = quantities(runs) if callable(quantities) else quantities
        several = len(runs) > 1
        groups: dict[str, list[Line]] = {}
        for order, (label, value, style) in enumerate(chosen):
            lines = groups.setdefault(label if several and len(chosen) > 1 else "", [])
            for place, (name, records) in enumerate(runs.items()):
                points = _by_epoch(records, value, (None, 0) if scale == "log" else (None,), factor)
                if points and several:
                    lines.append(Line(name, colour_of(place, len(runs)), style if style in MARKERS else "-", points))
                elif points:
                    lines.append(Line(label, colour(order, len(chosen)), style, points))
        return [Panel(partial(_draw, runs, lines, unit, scale), heading) for heading, lines in groups.items() if lines]

    return panels


def of_stages(name: str) -> Callable[[Runs], list[Quantity]]:
    """A value of a StageRecord as a quantity for each stage."""

    def quantities(runs: Runs) -> list[Quantity]:
        numbers = {stage.stage for records in runs.values() for record in records for stage in record.stages}
        return [(f"stage {n}", f"stage{n}.{name}", "-") for n in sorted(numbers)]

    return quantities


def parallel_spans(records: Sequence[EpochRecord]) -> tuple[tuple[float, float], ...]:
    """Where to shade: half an epoch around every unbroken stretch of parallel epochs."""
    epochs = [record.epoch + 1 for record in of_phase(records, "parallel")]
    starts = [epoch - 0.5 for epoch in epochs if epoch - 1 not in epochs]
    return tuple(zip(starts, (epoch + 0.5 for epoch in epochs if epoch + 1 not in epochs), strict=True))


def epoch_axis(panel: Any, runs: Runs) -> None:
    """Whole epochs, all those of the runs."""
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch + 1 for records in runs.values() for record in records]
    panel.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    panel.set_xlabel("epoch")


def _draw(runs: Runs, lines: Sequence[Line], unit: str, scale: Scale, panel: Any) -> list[Any]:
    """The curves and the shading of parallel epochs; what stands for them in a legend."""
    drawn, values = [], [value for line in lines for value in line.points.values() if value == value]
    for label, colour, style, points in lines:
        look: Any = {"marker": "o", "markersize": 3 if len(points) < MANY_EPOCHS else 1, "linestyle": style}
        look |= {"marker": style, "markersize": 6, "linestyle": ""} if style in MARKERS else {}
        drawn += panel.plot(points.keys(), points.values(), color=colour, label=label, linewidth=1.5, **look)
    if scale != "linear" and min(values) > 0 and (scale != "log if wide" or max(values) > WIDE_RANGE * min(values)):
        panel.set_yscale("log")
    elif scale == "log with sign" and any(values):  # linear around zero
        panel.set_yscale("symlog", linthresh=min(abs(value) for value in values if value))
    panel.set_ylabel(unit)
    panel.grid(alpha=0.3)
    epoch_axis(panel, runs)
    spans = [span for each in dict.fromkeys(map(parallel_spans, runs.values())) for span in each]
    shades = [panel.axvspan(*span, color=BAND, alpha=0.12, linewidth=0, label="parallel epochs") for span in spans]
    return drawn + shades[:1]


def _by_epoch(records: Sequence[EpochRecord], value: Value, gaps: Sequence[object], factor: float) -> dict[int, float]:
    """Values by epoch, NaN for a gap; nothing where there is no value."""
    shown = [record for record in records if record.loss is not None] if value in EVALUATED else records
    result = {r.epoch + 1: flat(r).get(value) if isinstance(value, str) else value(r) for r in shown}
    if all(each in gaps for each in result.values()):
        return {}
    return {epoch: float("nan") if each is None or each in gaps else factor * each for epoch, each in result.items()}


def points(records: Sequence[EpochRecord]) -> list[tuple[float, float]]:
    """Seconds of training and refresh since the start, and test accuracy in %, after each epoch that has both.

    An epoch of unknown length ends the list: nobody knows how late the next ones are.
    """
    seconds = [learning_s(record) for record in records]
    known = seconds.index(None) if None in seconds else len(seconds)
    times = accumulate(each for each in seconds[:known] if each is not None)
    reached = [record.test_accuracy for record in records[:known]]
    return [(time, 100 * value) for time, value in zip(times, reached, strict=True) if value is not None]


def plane(runs: Runs) -> list[Panel]:
    """A line for each run with its end marked; exact ones are dashed, the line that a method must be above."""
    lines = {name: points(records) for name, records in runs.items()}

    def draw(panel: Any) -> list[Any]:
        legend = []
        for place, (name, line) in enumerate(lines.items()):
            if line:
                colour, exact = colour_of(place, len(runs)), not of_phase(runs[name], "parallel")
                label, style = (f"{name} (exact)", "--") if exact else (name, "-")
                legend += panel.plot(*zip(*line, strict=True), style, color=colour, marker=".", label=label)
                panel.plot(*line[-1], "o", color=colour, markersize=7)
        panel.set(xlabel="training and refresh (s)", ylabel="test accuracy (%)", xlim=(0, None))
        panel.grid(alpha=0.3)
        return legend

    return [Panel(draw)] if any(lines.values()) else []
