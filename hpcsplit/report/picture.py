"""The curves of one run, or of several side by side, as one picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from hpcsplit.files.atomic import write_bytes
from hpcsplit.report import curves
from hpcsplit.report.curves import Runs
from hpcsplit.report.lines import term

FORMATS = ("png", "pdf", "svg")


def draw(records_by_name: Runs, path: Path | str, title: str) -> None:
    """Write a picture with loss, test accuracy, violation and label signal over the epochs; parallel epochs are shaded.

    Methods that record their objective get a panel for it, with the residual of their constraints.  The suffix of the
    path is one of FORMATS.
    """
    from matplotlib.figure import Figure

    everything = [record for records in records_by_name.values() for record in records]
    mosaic: list[Any] = [["loss", "accuracy"], ["violation", "signal"]]
    if any(term(record, "objective") is not None for record in everything):
        mosaic.append(["objective", "objective"])
    figure = Figure(figsize=(12, 4.5 * len(mosaic)), layout="constrained")
    figure.suptitle(title, fontsize=14, parse_math=False)
    panels = figure.subplot_mosaic(mosaic)
    loss, accuracy, violation, signal = (panels[name] for name in ("loss", "accuracy", "violation", "signal"))
    legends = {
        loss: curves.by_run(loss, records_by_name, curves.LOSSES),
        accuracy: curves.by_run(accuracy, records_by_name, curves.accuracies(records_by_name), scale=100),
        violation: curves.by_stage(violation, records_by_name, curves.positive_violation),
        signal: curves.by_stage(signal, records_by_name, lambda stage: stage.label_signal),
    }
    names = {
        loss: ("Loss of the whole network", "loss (mean per sample)"),
        accuracy: ("Test accuracy", "accuracy (%)"),
        violation: ("Violation at each stage's input", "violation (no unit, log scale)"),
        signal: ("Label signal at each stage's output", "cosine with the exact gradient"),
    }
    curves.log_if_wide(loss)
    if violation.lines:
        violation.set_yscale("log")
    if objective := panels.get("objective"):
        legends[objective] = curves.by_run(objective, records_by_name, curves.OBJECTIVE)
        names[objective] = ("Objective and residual of its constraints", "a sample (log scale)")
        curves.log_with_sign(objective)
    for panel, (heading, quantity) in names.items():
        panel.set_title(heading, fontsize=11)
        panel.set_ylabel(quantity)
        _finish(panel, records_by_name, legends[panel])
    image = io.BytesIO()
    figure.savefig(image, format=Path(path).suffix.removeprefix("."), dpi=110)
    write_bytes(Path(path), image.getbuffer())


def _finish(panel: Any, runs: Runs, legend: list[Any]) -> None:
    """The epoch axis, and a legend below the panel where it hides nothing."""
    bands = curves.over_epochs(panel, runs)
    if not panel.lines:
        panel.text(0.5, 0.5, "no data", color="grey", ha="center", va="center", transform=panel.transAxes)
        panel.set_yticks([])
        return
    box = panel.legend(
        handles=[*legend, *bands],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=4 if len(runs) == 1 else 3,
        fontsize=9,
        columnspacing=1.2,
        frameon=False,
    )
    for text in box.get_texts():
        text.set_parse_math(False)
