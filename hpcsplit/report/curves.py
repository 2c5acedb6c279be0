"""Curves over the epochs, as the picture and the page draw them; epochs count from 1, as on the console."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from hpcsplit.report.lines import bn_differs, term
from hpcsplit.run.records import EpochRecord, StageRecord

Quantity = tuple[str, Callable[[EpochRecord], float | None], str]  # its label, its value in an epoch, its line
StageQuantity = Callable[[StageRecord], float | None]
Runs = Mapping[str, Sequence[EpochRecord]]

LOSSES: tuple[Quantity, ...] = (
    ("train", lambda record: record.loss, "-"),
    ("test", lambda record: record.test_loss, ":"),
    ("through λ, train", lambda record: record.aux_loss, "--"),
)
ACCURACY: Quantity = ("test", lambda record: record.test_accuracy, "-")
RE_ESTIMATED: Quantity = ("BatchNorm re-estimated", lambda record: record.test_accuracy_bn, "--")
HELD_OUT: Quantity = ("held out", lambda record: record.validation_accuracy, "-.")
OF_EVALUATIONS = ("train", "test", RE_ESTIMATED[0], HELD_OUT[0])  # no gap where an epoch has no evaluation
OBJECTIVE: tuple[Quantity, ...] = (
    ("objective", lambda record: term(record, "objective"), "-"),
    ("residual", lambda record: _root(term(record, "residual_sq")), "--"),
)
# Told apart by people who see no red or no green (Okabe and Ito 2008), without their yellow, which is faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
RUN_STYLES = ("-", "--", ":", "-.")
POINTS = ("o", "^")  # in place of a line
MANY_EPOCHS = 60  # from which on markers would hide the lines
BAND = "#4c72b0"
WIDE_RANGE = 30.0  # losses that span more than this factor are drawn on a log scale


def colour_of(place: int, count: int) -> Any:
    """The colour of one of `count` things that have no order: runs, or quantities of one run."""
    from matplotlib import colormaps

    return COLOURS[place] if count <= len(COLOURS) else colormaps["turbo"](place / (count - 1))


def shade_of(place: int, count: int) -> Any:
    """The colour of one of `count` things in a row: stages."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * place / max(1, count - 1))


def accuracies(runs: Runs) -> tuple[Quantity, ...]:
    """That of the test set, and what some run has beside it."""
    everything = [record for records in runs.values() for record in records]
    found = [ACCURACY]
    if any(map(bn_differs, everything)):
        found.append(RE_ESTIMATED)
    if any(record.validation_accuracy is not None for record in everything):
        found.append(HELD_OUT)
    return tuple(found)


def stage_numbers(runs: Runs) -> list[int]:
    return sorted({stage.stage for records in runs.values() for record in records for stage in record.stages})


def of_stage(record: EpochRecord, number: int, quantity: StageQuantity) -> float | None:
    """The value of one stage in an epoch."""
    return next((quantity(stage) for stage in record.stages if stage.stage == number), None)


def parallel_spans(records: Sequence[EpochRecord]) -> tuple[tuple[float, float], ...]:
    """Where to shade: half an epoch around every unbroken stretch of parallel epochs."""
    spans = []
    epochs = [record.epoch + 1 for record in records if record.phase == "parallel"]
    for _, stretch in groupby(enumerate(epochs), key=lambda pair: pair[1] - pair[0]):
        found = [epoch for _, epoch in stretch]
        spans.append((found[0] - 0.5, found[-1] + 0.5))
    return tuple(spans)


def positive_violation(stage: StageRecord) -> float | None:
    """Stage 0 has no input boundary; its zero has no place on a log scale."""
    return stage.violation if stage.violation else None


# Each of these draws its curves into a panel and gives the samples of a legend, none where there was nothing to draw.


def by_run(panel: Any, runs: Runs, quantities: Sequence[Quantity], scale: float = 1.0) -> list[Any]:
    """One run: a colour for each quantity.  Several: a colour for each run, a style for each quantity."""
    several, legend = len(runs) > 1, {}
    for place, (name, records) in enumerate(runs.items()):
        for order, (label, value_of, style) in enumerate(quantities):
            shown = [r for r in records if r.loss is not None] if label in OF_EVALUATIONS else records
            values = [value_of(record) for record in shown]
            scaled = [None if value is None else scale * value for value in values]
            colour = colour_of(place, len(runs)) if several else colour_of(order, len(quantities))
            if not _line(panel, shown, scaled, colour, style):
                continue
            if several:
                legend[name] = sample(name, colour, "-")
            if not several or len(quantities) > 1:
                legend[label] = sample(label, "black" if several else colour, style)
    return sorted(legend.values(), key=lambda handle: handle.get_label() not in runs)


def by_stage(panel: Any, runs: Runs, quantity: StageQuantity) -> list[Any]:
    """A colour for each stage, a style for each run."""
    numbers = stage_numbers(runs)
    legend = {}
    for place, (name, records) in enumerate(runs.items()):
        style = RUN_STYLES[place % len(RUN_STYLES)]
        for order, number in enumerate(numbers):
            values = [of_stage(record, number, quantity) for record in records]
            colour = shade_of(order, len(numbers))
            if not _line(panel, records, values, colour, style):
                continue
            if len(runs) > 1:
                legend[name] = sample(name, "black", style)
            legend[f"stage {number}"] = sample(f"stage {number}", colour, "-")
    return sorted(legend.values(), key=lambda handle: handle.get_label() not in runs)


def sample(label: str, colour: Any, style: str) -> Any:
    """What stands for a curve in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=1.5, label=label, **_shape(style))


def _shape(style: str) -> dict[str, Any]:
    """Of a line, or of single points for what is measured now and then."""
    return {"marker": style, "linestyle": "", "markersize": 6} if style in POINTS else {"linestyle": style}


def _line(panel: Any, records: Sequence[EpochRecord], values: list[Any], colour: Any, style: str) -> bool:
    """Draw a curve with gaps where there is no value; whether there was any."""
    if all(value is None for value in values):
        return False
    numbers = [float("nan") if value is None else value for value in values]
    epochs = [record.epoch + 1 for record in records]
    look: dict[str, Any] = {"marker": "o", "markersize": 3 if len(records) < MANY_EPOCHS else 1, "linewidth": 1.5}
    panel.plot(epochs, numbers, color=colour, **look | _shape(style))
    return True


def _root(square: float | None) -> float | None:
    """The root of a square; zero has no place on a log scale."""
    return math.sqrt(square) if square else None


# ------------------------------------------------------------------------------------------------ axes


def log_if_wide(panel: Any) -> None:
    values = _drawn(panel)
    if values and min(values) > 0 and max(values) > WIDE_RANGE * min(values):
        panel.set_yscale("log")


def log_with_sign(panel: Any) -> None:
    """A log scale; an augmented Lagrangian may be negative, then one that is linear around zero."""
    values = _drawn(panel)
    if min(values) > 0:
        panel.set_yscale("log")
    elif any(values):
        panel.set_yscale("symlog", linthresh=min(abs(value) for value in values if value))


def over_epochs(panel: Any, runs: Runs, *, bands: bool = True) -> list[Any]:
    """The epoch axis and the shading of parallel epochs, with its sample for a legend."""
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch + 1 for records in runs.values() for record in records]
    if epochs:
        panel.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    panel.set_xlabel("epoch")
    if not bands or not panel.lines:
        return []
    panel.grid(alpha=0.3)
    shaded = []
    for spans in dict.fromkeys(parallel_spans(records) for records in runs.values()):
        for start, end in spans:
            shaded.append(panel.axvspan(start, end, color=BAND, alpha=0.12, linewidth=0, label="parallel epochs"))
    return shaded[:1]


def _drawn(panel: Any) -> list[float]:
    return [value for line in panel.lines for value in line.get_ydata() if value == value]
