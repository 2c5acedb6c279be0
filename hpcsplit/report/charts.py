"""All figures, by the sections of the page: what is drawn, and a sentence that says what to look for."""

from __future__ import annotations

import math

from hpcsplit.report import bars
from hpcsplit.report.curves import Quantity, curves, of_stages, plane, shade_of
from hpcsplit.report.figure import Chart
from hpcsplit.report.lines import bn_differs
from hpcsplit.report.times import Runs, balance
from hpcsplit.run.records import flat

LOSSES: tuple[Quantity, ...] = (
    ("train", "loss", "-"),
    ("test", "test_loss", ":"),
    ("through λ, train", "aux_loss", "--"),
    ("test, average of the weights", "test_loss_ema", "-."),
)
OBJECTIVE: tuple[Quantity, ...] = (
    ("objective", "terms.objective", "-"),
    ("residual", lambda record: math.sqrt(flat(record).get("terms.residual_sq") or 0.0) or None, "--"),
)


def _accuracies(runs: Runs) -> list[Quantity]:
    """Re-estimated BatchNorm statistics have a curve where they change anything."""
    re_estimated: Quantity = ("BatchNorm re-estimated", "test_accuracy_bn", "--")
    differs = any(bn_differs(record) for records in runs.values() for record in records)
    others: list[Quantity] = [("held out", "validation_accuracy", "-."), ("train", "train_accuracy", ":")]
    others.append(("average of the weights", "test_accuracy_ema", "--"))
    return [("test", "test_accuracy", "-"), *([re_estimated] if differs else []), *others]


LEARNING = (
    Chart(
        "Loss",
        "Of the whole network after each epoch, and in parallel epochs what the last stage sees on its own λ. A loss "
        "through λ that falls while the others do not has learned the labels that leak into λ, not the images.",
        "No epoch has recorded a loss.",
        curves("loss (mean per sample)", LOSSES, scale="log if wide"),
        pictured=True,
    ),
    Chart(
        "Accuracy",
        "Of the whole network by a serial forward pass. Where re-estimated BatchNorm statistics change much, those "
        "of parallel epochs come from λ; where train and test part, the network learns by heart.",
        "No epoch has recorded an accuracy.",
        curves("accuracy (%)", _accuracies, factor=100),
        pictured=True,
    ),
    Chart(
        "Accuracy and time",
        "Test accuracy against the seconds of training and refresh, epoch by epoch. Dashed are exact runs, which one "
        "could stop early: a method pays where its line lies above and to the left of theirs (an exact run with fewer "
        "epochs, its learning rate lowered to the end, would reach more than the same moment of a long one).",
        "No epoch has recorded both a test accuracy and its seconds.",
        plane,
    ),
)
METHOD = (
    Chart(
        "Violation at each boundary",
        "‖λ − x‖ / ‖λ‖ at a stage's input: how far the variables are from what the stage before sends. It should fall "
        "or stay small; one that grows means that the stages train on inputs which they will not get.",
        "No boundary has a violation: there is one stage, or no parallel epoch, or a method without variables.",
        curves("violation (no unit)", of_stages("violation"), scale="log", colour=shade_of),
        pictured=True,
    ),
    Chart(
        "Label signal",
        "Cosine of what a stage is trained with and the exact gradient at its output: 1 in exact epochs and on the "
        "last stage. A stage near 0 learns nothing of the labels, whatever the loss through λ says.",
        "No stage has recorded a label signal.",
        curves("cosine (no unit)", of_stages("label_signal"), colour=shade_of),
        pictured=True,
    ),
    Chart(
        "Penalty signal",
        "Norm of the penalty's part of what a stage is trained with. Zero means that the boundary does not pull; "
        "compare stages and runs rather than values.",
        "No stage has recorded a penalty signal: the method has no penalty, or no parallel epoch was run.",
        curves("norm (log scale)", of_stages("penalty_signal"), scale="log", colour=shade_of),
    ),
    Chart(
        "Objective and residual",
        "The method's augmented Lagrangian a sample, and the norm of what its constraints miss: both should fall from "
        "where the variables last started anew.",
        "No run has a method that records its objective.",
        curves("a sample (log scale)", OBJECTIVE, scale="log with sign"),
        shared=False,
        pictured=True,
    ),
    Chart(
        "Theorem 1 of TSSM",
        "What the splitting does to the loss, |R_serial − R_split|, after the last epoch of a parallel phase, and what "
        "the theorem allows. The gap should be small; the bound takes a product of estimated Lipschitz constants and "
        "is far from tight for residual networks.",
        "No run has the two sides of Theorem 1: they are measured behind parallel epochs of methods with variables.",
        curves("nats (log scale)", (("gap", "theorem.gap", "o"), ("bound", "theorem.bound", "^")), scale="log"),
        shared=False,
    ),
)
SCHEDULE = (
    Chart(
        "Phases",
        "Which epochs were exact and which trained all stages at once.",
        "No epoch was finished.",
        bars.phases,
    ),
    Chart(
        "Learning rate and β",
        "As each epoch used them; β is the weight of the penalty, in parallel epochs of methods that have one.",
        "No epoch has recorded a learning rate.",
        lambda runs: [
            panel
            for name, key in (("learning rate", "lr"), ("β", "beta"))
            for panel in curves(name, [(name, key, "-")])(runs)
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
        bars.time_split,
    ),
    Chart(
        "Where each stage's time went",
        "Seconds of training, by stage. The longest computing sets the pace: cuts are good where these are equal.",
        "No stage has recorded its seconds.",
        bars.stage_split,
        shared=False,
    ),
    Chart(
        "Balance",
        "Computing of the quickest stage over that of the slowest; 1 is perfect. Exact and parallel epochs may differ.",
        "No epoch has recorded the computing of two stages.",
        curves("quickest / slowest", [("balance", balance, "-")]),
    ),
    Chart(
        "Speed",
        "Samples a second of training alone, without evaluation. Drops in single epochs are other work on the machine.",
        "No epoch has recorded its samples a second.",
        curves("samples/s", [("samples/s", "samples_per_s", "-")]),
    ),
    Chart(
        "Memory",
        "The most memory that the process of a stage has had resident so far, without a GPU's. It should be level "
        "after the first epoch of each kind; stages run in one process share one number.",
        "No epoch has recorded the memory of its stages (runs of older versions have not).",
        curves("GiB", of_stages("peak_rss_bytes"), factor=2.0**-30, colour=shade_of),
    ),
)
SECTIONS = {"Learning": LEARNING, "The method": METHOD, "Schedule": SCHEDULE, "Time and memory": COST}
