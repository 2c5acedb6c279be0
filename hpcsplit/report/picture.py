"""The curves of one run, or of several side by side, as one PNG; epochs count from 1, as on the console."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hpcsplit.records import EpochRecord, StageRecord
from hpcsplit.report.lines import bn_differs, term

Quantity = tuple[str, Callable[[EpochRecord], float | None], str]  # its label, its value in an epoch, its line
Runs = Mapping[str, Sequence[EpochRecord]]

LOSSES: tuple[Quantity, ...] = (
    ("train", lambda record: record.loss, "-"),
    ("test", lambda record: record.test_loss, ":"),
    ("through λ, train", lambda record: record.aux_loss, "--"),
)
ACCURACY: Quantity = ("test", lambda record: record.test_accuracy, "-")
RE_ESTIMATED: Quantity = ("BatchNorm re-estimated", lambda record: record.test_accuracy_bn, "--")
OBJECTIVE: tuple[Quantity, ...] = (
    ("objective", lambda record: term(record, "objective"), "-"),
    ("residual", lambda record: _root(term(record, "residual_sq")), "--"),
)
RUN_STYLES = ("-", "--", ":", "-.")
MANY_EPOCHS = 60  # from which on markers would hide the lines
BAND = "#4c72b0"
WIDE_RANGE = 30.0  # losses that span more than this factor are drawn on a log scale


def draw(records_by_name: Runs, path: Path | str, title: str) -> None:
    """Write a PNG with loss, test accuracy, violation and label signal over the epochs; parallel epochs are shaded.

    Methods that record their objective get a panel for it, with the residual of their constraints.
    """
    from matplotlib.figure import Figure

    everything = [record for records in records_by_name.values() for record in records]
    mosaic: list[Any] = [["loss", "accuracy"], ["violation", "signal"]]
    if any(term(record, "objective") is not None for record in everything):
        mosaic.append(["objective", "objective"])
    figure = Figure(figsize=(12, 4.5 * len(mosaic)), layout="constrained")
    figure.suptitle(title, fontsize=14)
    panels = figure.subplot_mosaic(mosaic)
    loss, accuracy, violation, signal = (panels[name] for name in ("loss", "accuracy", "violation", "signal"))
    accuracies = (ACCURACY, RE_ESTIMATED) if any(map(bn_differs, everything)) else (ACCURACY,)
    legends = {
        loss: _by_run(loss, records_by_name, LOSSES),
        accuracy: _by_run(accuracy, records_by_name, accuracies, scale=100),
        violation: _by_stage(violation, records_by_name, _positive_violation),
        signal: _by_stage(signal, records_by_name, lambda stage: stage.label_signal),
    }
    names = {
        loss: ("Loss of the whole network", "loss (mean per sample)"),
        accuracy: ("Test accuracy", "accuracy (%)"),
        violation: ("Violation at each stage's input", "violation (no unit, log scale)"),
        signal: ("Label signal at each stage's output", "cosine with the exact gradient"),
    }
    _log_if_wide(loss)
    if violation.lines:
        violation.set_yscale("log")
    if objective := panels.get("objective"):
        legends[objective] = _by_run(objective, records_by_name, OBJECTIVE)
        names[objective] = ("Objective and residual of its constraints", "a sample (log scale)")
        _log_with_sign(objective)
    for panel, (heading, quantity) in names.items():
        panel.set_title(heading, fontsize=11)
        panel.set_ylabel(quantity)
        _finish(panel, records_by_name, legends[panel])
    figure.savefig(path, format="png", dpi=110)


def parallel_spans(records: Sequence[EpochRecord]) -> tuple[tuple[float, float], ...]:
    """Where to shade: half an epoch around every unbroken stretch of parallel epochs."""
    spans = []
    epochs = [record.epoch + 1 for record in records if record.phase == "parallel"]
    for _, stretch in groupby(enumerate(epochs), key=lambda pair: pair[1] - pair[0]):
        found = [epoch for _, epoch in stretch]
        spans.append((found[0] - 0.5, found[-1] + 0.5))
    return tuple(spans)


def _by_run(panel: Any, runs: Runs, quantities: Sequence[Quantity], scale: float = 1.0) -> list[Any]:
    """One run: a colour for each quantity.  Several: a colour for each run, a style for each quantity."""
    several, legend = len(runs) > 1, {}
    for place, (name, records) in enumerate(runs.items()):
        for order, (label, value_of, style) in enumerate(quantities):
            values = [value_of(record) for record in records]
            scaled = [None if value is None else scale * value for value in values]
            colour = f"C{place if several else order}"
            if not _line(panel, records, scaled, colour, style):
                continue
            if several:
                legend[name] = _sample(name, colour, "-")
            legend[label] = _sample(label, "black" if several else colour, style)
    return sorted(legend.values(), key=lambda sample: sample.get_label() not in runs)


def _by_stage(panel: Any, runs: Runs, quantity: Callable[[StageRecord], float | None]) -> list[Any]:
    """A colour for each stage, a style for each run."""
    from matplotlib import colormaps

    numbers = sorted({stage.stage for records in runs.values() for record in records for stage in record.stages})
    legend = {}
    for place, (name, records) in enumerate(runs.items()):
        style = RUN_STYLES[place % len(RUN_STYLES)]
        for order, number in enumerate(numbers):
            values = [{stage.stage: quantity(stage) for stage in record.stages}.get(number) for record in records]
            colour = colormaps["viridis"](0.9 * order / max(1, len(numbers) - 1))
            if not _line(panel, records, values, colour, style):
                continue
            if len(runs) > 1:
                legend[name] = _sample(name, "black", style)
            legend[f"stage {number}"] = _sample(f"stage {number}", colour, "-")
    return sorted(legend.values(), key=lambda sample: sample.get_label() not in runs)


def _positive_violation(stage: StageRecord) -> float | None:
    """Stage 0 has no input boundary; its zero has no place on a log scale."""
    return stage.violation if stage.violation else None


def _line(panel: Any, records: Sequence[EpochRecord], values: list[Any], colour: Any, style: str) -> bool:
    """Draw a curve with gaps where there is no value; whether there was any."""
    if all(value is None for value in values):
        return False
    numbers = [float("nan") if value is None else value for value in values]
    epochs = [record.epoch + 1 for record in records]
    size = 3 if len(records) < MANY_EPOCHS else 1
    panel.plot(epochs, numbers, style, color=colour, marker="o", markersize=size, linewidth=1.5)
    return True


def _sample(label: str, colour: Any, style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, linewidth=1.5, label=label)


def _log_if_wide(panel: Any) -> None:
    values = [value for line in panel.lines for value in line.get_ydata() if value == value]
    if values and min(values) > 0 and max(values) > WIDE_RANGE * min(values):
        panel.set_yscale("log")


def _log_with_sign(panel: Any) -> None:
    """A log scale; an augmented Lagrangian may be negative, then one that is linear around zero."""
    values = [value for line in panel.lines for value in line.get_ydata() if value == value]
    if min(values) > 0:
        panel.set_yscale("log")
    elif any(values):
        panel.set_yscale("symlog", linthresh=min(abs(value) for value in values if value))


def _root(square: float | None) -> float | None:
    """The root of a square; zero has no place on a log scale."""
    return math.sqrt(square) if square else None


def _finish(panel: Any, runs: Runs, legend: list[Any]) -> None:
    """The epoch axis, the shading, and a legend below the panel where it hides nothing."""
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch + 1 for records in runs.values() for record in records]
    if epochs:
        panel.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    panel.set_xlabel("epoch")
    if not panel.lines:
        panel.text(0.5, 0.5, "no data", color="grey", ha="center", va="center", transform=panel.transAxes)
        panel.set_yticks([])
        return
    panel.grid(alpha=0.3)
    bands = []
    for spans in dict.fromkeys(parallel_spans(records) for records in runs.values()):
        for start, end in spans:
            bands.append(panel.axvspan(start, end, color=BAND, alpha=0.12, linewidth=0, label="parallel epochs"))
    panel.legend(
        handles=[*legend, *bands[:1]],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=4 if len(runs) == 1 else 3,
        fontsize=9,
        columnspacing=1.2,
        frameon=False,
    )
