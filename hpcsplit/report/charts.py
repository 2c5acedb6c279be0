"""The charts of the page, declared: what is drawn, and a sentence that says what to look for.

One run has a colour for each of its curves in one panel.  Several have a colour for each run, the same in every chart,
and a panel for each kind of curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hpcsplit.report import bars
from hpcsplit.report import curves as c
from hpcsplit.report.curves import Quantity, Runs, StageQuantity
from hpcsplit.report.lines import shortened
from hpcsplit.report.plane import plane
from hpcsplit.report.times import balance
from hpcsplit.run.records import EpochRecord, StageRecord

Finish = Callable[[Any], object]  # of the axes of a panel that has curves
GIB = 2.0**30


@dataclass(frozen=True)
class Panel:
    """One pair of axes: `draw` puts curves there and gives the samples of a legend, none where there is no value.

    `rows` are the bars of a panel that has bars instead.
    """

    draw: Callable[[Any], list[Any]]
    heading: str = ""
    rows: int = 0


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        caption: what is shown, and what to look for.
        absent: the sentence where no run has the quantity.
        panels: for these runs; `shared` gives them one scale.
    """

    heading: str
    caption: str
    absent: str
    panels: Callable[[Runs], Sequence[Panel]]
    shared: bool = True


# ------------------------------------------------------------------------------------------------ over the epochs


def _as_it_is(panel: Any) -> None:
    pass


def _curves(
    runs: Runs, unit: str, quantities: Sequence[Quantity], scale: float = 1.0, finish: Finish = _as_it_is
) -> list[Panel]:
    """Quantities of an epoch: one panel for one run, a panel for each quantity of several."""

    def draw(panel: Any, chosen: Sequence[Quantity]) -> list[Any]:
        return _finished(panel, c.by_run(panel, runs, chosen, scale), runs, unit, finish)

    if len(runs) == 1:
        return [Panel(partial(draw, chosen=quantities))]
    headings = [label if len(quantities) > 1 else "" for label, _, _ in quantities]
    return [
        Panel(partial(draw, chosen=[(label, value_of, style if style in c.POINTS else "-")]), heading)
        for heading, (label, value_of, style) in zip(headings, quantities, strict=True)
    ]


def _stage_curves(
    unit: str, quantity: StageQuantity, scale: float = 1.0, finish: Finish = _as_it_is
) -> Callable[[Runs], list[Panel]]:
    """A quantity of a stage: one panel for one run, a panel for each stage of several."""

    def value(stage: StageRecord) -> float | None:
        found = quantity(stage)
        return None if found is None else scale * found

    def panels(runs: Runs) -> list[Panel]:
        if len(runs) == 1:
            return [Panel(lambda panel: _finished(panel, c.by_stage(panel, runs, value), runs, unit, finish))]
        numbers = c.stage_numbers(runs)
        quantities = [(f"stage {n}", partial(c.of_stage, number=n, quantity=value), "-") for n in numbers]
        return _curves(runs, unit, quantities, finish=finish)

    return panels


def _finished(panel: Any, legend: list[Any], runs: Runs, unit: str, finish: Finish) -> list[Any]:
    panel.set_ylabel(unit)
    if not legend:
        return []
    finish(panel)
    return [*legend, *c.over_epochs(panel, runs)]


def _log(panel: Any) -> None:
    panel.set_yscale("log")


def _accuracy(runs: Runs) -> list[Panel]:
    train: Quantity = ("train", lambda record: record.train_accuracy, ":")
    return _curves(runs, "accuracy (%)", (*c.accuracies(runs), train), scale=100)


def _side(key: str) -> Callable[[EpochRecord], float | None]:
    return lambda record: (record.theorem or {}).get(key) or None


THEOREM: tuple[Quantity, ...] = (("gap", _side("gap"), "o"), ("bound", _side("bound"), "^"))


def _stage_times(runs: Runs) -> list[Panel]:
    """Parallel epochs, where a run has any."""
    panels = []
    for name, records in runs.items():
        parallel = [record for record in records if record.phase == "parallel"]
        heading = "parallel epochs" if parallel else "exact epochs"
        if len(runs) > 1:
            heading = f"{shortened(name)}: {heading}"
        draw = partial(bars.stage_split, records=parallel or records)
        panels.append(Panel(draw, heading, rows=len(c.stage_numbers({name: records}))))
    return panels


LEARNING = (
    Chart(
        "Loss",
        "Of the whole network after each epoch, and in parallel epochs what the last stage sees on its own λ. A loss "
        "through λ that falls while the others do not has learned the labels that leak into λ, not the images.",
        "No epoch has recorded a loss.",
        lambda runs: _curves(runs, "loss (mean per sample)", c.LOSSES, finish=c.log_if_wide),
    ),
    Chart(
        "Accuracy",
        "Of the whole network by a serial forward pass. Where re-estimated BatchNorm statistics change much, those "
        "of parallel epochs come from λ; where train and test part, the network learns by heart.",
        "No epoch has recorded an accuracy.",
        _accuracy,
    ),
    Chart(
        "Accuracy and time",
        "Test accuracy against the seconds of training and refresh, epoch by epoch. Dashed are exact runs, which one "
        "could stop early: a method pays where its line lies above and to the left of theirs (an exact run with fewer "
        "epochs, its learning rate lowered to the end, would reach more than the same moment of a long one).",
        "No epoch has recorded both a test accuracy and its seconds.",
        lambda runs: [Panel(lambda panel: plane(panel, runs))],
    ),
)
METHOD = (
    Chart(
        "Violation at each boundary",
        "‖λ − x‖ / ‖λ‖ at a stage's input: how far the variables are from what the stage before sends. It should fall "
        "or stay small; one that grows means that the stages train on inputs which they will not get.",
        "No boundary has a violation: there is one stage, or no parallel epoch, or a method without variables.",
        _stage_curves("violation (no unit)", c.positive_violation, finish=_log),
    ),
    Chart(
        "Label signal",
        "Cosine of what a stage is trained with and the exact gradient at its output: 1 in exact epochs and on the "
        "last stage. A stage near 0 learns nothing of the labels, whatever the loss through λ says.",
        "No stage has recorded a label signal.",
        _stage_curves("cosine (no unit)", lambda stage: stage.label_signal),
    ),
    Chart(
        "Penalty signal",
        "Norm of the penalty's part of what a stage is trained with. Zero means that the boundary does not pull; "
        "compare stages and runs rather than values.",
        "No stage has recorded a penalty signal: the method has no penalty, or no parallel epoch was run.",
        _stage_curves("norm (log scale)", lambda stage: stage.penalty_signal or None, finish=_log),
    ),
    Chart(
        "Objective and residual",
        "The method's augmented Lagrangian a sample, and the norm of what its constraints miss: both should fall from "
        "where the variables last started anew.",
        "No run has a method that records its objective.",
        lambda runs: _curves(runs, "a sample (log scale)", c.OBJECTIVE, finish=c.log_with_sign),
        shared=False,
    ),
    Chart(
        "Theorem 1 of TSSM",
        "What the splitting does to the loss, |R_serial − R_split|, after the last epoch of a parallel phase, and what "
        "the theorem allows. The gap should be small; the bound takes a product of estimated Lipschitz constants and "
        "is far from tight for residual networks.",
        "No run has the two sides of Theorem 1: they are measured behind parallel epochs of methods with variables.",
        lambda runs: _curves(runs, "nats (log scale)", THEOREM, finish=_log),
        shared=False,
    ),
)
SCHEDULE = (
    Chart(
        "Phases",
        "Which epochs were exact and which trained all stages at once.",
        "No epoch was finished.",
        lambda runs: [Panel(lambda panel: bars.phases(panel, runs), rows=len(runs))],
        shared=False,
    ),
    Chart(
        "Learning rate and β",
        "As each epoch used them; β is the weight of the penalty, in parallel epochs of methods that have one.",
        "No epoch has recorded a learning rate.",
        lambda runs: [
            *_curves(runs, "learning rate", [("learning rate", lambda record: record.lr, "-")]),
            *_curves(runs, "β", [("β", lambda record: record.beta, "-")]),
        ],
        shared=False,
    ),
)
COST = (
    Chart(
        "Where the time went",
        "All seconds of a run; those within training are means over the stages. Exposed is what computing did not "
        "hide, imbalance is waiting for a slower stage. What is not computing could still be gained.",
        "No epoch has recorded its seconds.",
        lambda runs: [Panel(lambda panel: bars.time_split(panel, runs), rows=len(runs))],
        shared=False,
    ),
    Chart(
        "Where each stage's time went",
        "Seconds of training, by stage. The longest computing sets the pace: cuts are good where these are equal.",
        "No stage has recorded its seconds.",
        _stage_times,
        shared=False,
    ),
    Chart(
        "Balance",
        "Computing of the quickest stage over that of the slowest; 1 is perfect. Exact and parallel epochs may differ.",
        "No epoch has recorded the computing of two stages.",
        lambda runs: _curves(runs, "quickest / slowest", [("balance", balance, "-")]),
    ),
    Chart(
        "Speed",
        "Samples a second of training alone, without evaluation. Drops in single epochs are other work on the machine.",
        "No epoch has recorded its samples a second.",
        lambda runs: _curves(runs, "samples/s", [("samples/s", lambda record: record.samples_per_s, "-")]),
    ),
    Chart(
        "Memory",
        "The most memory that the process of a stage has had resident so far, without a GPU's. It should be level "
        "after the first epoch of each kind; stages run in one process share one number.",
        "No epoch has recorded the memory of its stages (runs of older versions have not).",
        _stage_curves("GiB", lambda stage: stage.peak_rss_bytes, scale=1 / GIB),
    ),
)
SECTIONS = {"Learning": LEARNING, "The method": METHOD, "Schedule": SCHEDULE, "Time and memory": COST}
