"""Charts of horizontal bars: the phases of runs, where their time went, and what each stage did with its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcsplit.report.curves import BAND, Runs, over_epochs, parallel_spans, sample
from hpcsplit.report.lines import shortened
from hpcsplit.report.times import CHECKPOINT, EVALUATION, OTHER, PARTS, REFRESH, UNSPLIT, run_parts, stage_parts
from hpcsplit.run.records import EpochRecord

EXACT = "#d9d9d9"
THICK = 0.5  # of a bar, where bars are 1 apart
_COLOURS = ("#0072b2", "#d55e00", "#cc79a7", "#f0e442", "#bbbbbb", "#009e73", "#56b4e9", "#000000")
COLOURS = dict(zip((*PARTS.values(), OTHER, REFRESH, EVALUATION, CHECKPOINT), _COLOURS, strict=True))
COLOURS[UNSPLIT] = COLOURS[EVALUATION]
SMALLEST = 0.002  # a part below this share of a bar cannot be seen


def phases(panel: Any, runs: Runs) -> list[Any]:
    """A row of epochs for each run; an edge where the auxiliary variables started anew."""
    legend: dict[str, Any] = {}
    for row, records in enumerate(runs.values()):
        epochs = [record.epoch for record in records]
        spans = [("exact epochs", EXACT, (min(epochs) + 0.5, max(epochs) + 1.5))]
        spans += [("parallel epochs", BAND, span) for span in parallel_spans(records)]
        if all(record.phase == "parallel" for record in records):
            del spans[0]
        for label, colour, (start, end) in spans:
            legend[label] = _bar(panel, row, start, end - start, colour, label)
        edges = [record.epoch + 0.5 for record in records if record.refresh_s]
        if edges:
            panel.vlines(edges, row - THICK / 2, row + THICK / 2, color="black", linewidth=2)
            legend["anew"] = sample("variables started anew", "black", "-")
    _rows(panel, list(runs))
    over_epochs(panel, runs, bands=False)
    return list(legend.values())


def time_split(panel: Any, runs: Runs) -> list[Any]:
    """A bar for each run: all its seconds, by part."""
    return _stacked(panel, {name: run_parts(records) for name, records in runs.items()}, "seconds of the run")


def stage_split(panel: Any, records: Sequence[EpochRecord]) -> list[Any]:
    """A bar for each stage of a run: its seconds of training, by part."""
    stages: dict[str, list[Any]] = {}
    for record in records:
        for stage in record.stages:
            stages.setdefault(f"stage {stage.stage}", []).append(stage)
    return _stacked(panel, {name: stage_parts(found) for name, found in stages.items()}, "seconds of training")


def _stacked(panel: Any, bars: Mapping[str, Mapping[str, float]], unit: str) -> list[Any]:
    legend: dict[str, Any] = {}
    longest = max((sum(parts.values()) for parts in bars.values()), default=0.0)
    for row, parts in enumerate(bars.values()):
        left = 0.0
        for name, seconds in parts.items():
            if seconds > SMALLEST * longest:
                legend[name] = _bar(panel, row, left, seconds, COLOURS[name], name)
                left += seconds
    _rows(panel, list(bars))
    panel.set_xlabel(unit)
    panel.grid(axis="x", alpha=0.3)
    return sorted(legend.values(), key=lambda bar: list(COLOURS).index(bar.get_label()))


def _bar(panel: Any, row: int, left: float, length: float, colour: str, label: str) -> Any:
    (drawn,) = panel.barh(row, length, THICK, left, color=colour, edgecolor="white", linewidth=0.6)
    drawn.set_label(label)
    return drawn


def _rows(panel: Any, names: Sequence[str]) -> None:
    """Names above the bars, where long ones have room; the first one at the top."""
    for row, name in enumerate(names):
        at = panel.get_yaxis_transform()
        panel.text(0.0, row - THICK / 2 - 0.06, shortened(name), transform=at, va="bottom", parse_math=False)
    panel.set_ylim(len(names) - 0.5, -0.75)
    panel.set_yticks([])
    for side in ("left", "right", "top"):
        panel.spines[side].set_visible(False)
