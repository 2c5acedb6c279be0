"""Figures of horizontal bars: the phases of runs, where their time went, and what each stage did with its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcsplit.report import times
from hpcsplit.report.curves import BAND, epoch_axis, parallel_spans
from hpcsplit.report.figure import Panel
from hpcsplit.report.lines import shortened
from hpcsplit.report.times import Runs, of_phase, run_parts, stage_parts

EXACT = "#d9d9d9"
THICK = 0.5  # of a bar, where bars are 1 apart
_COLOURS = ("#0072b2", "#d55e00", "#cc79a7", "#7a5195", "#f0e442", "#bbbbbb", "#009e73", "#56b4e9", "#000000")
COLOURS = dict(zip(times.ALL, _COLOURS, strict=True))
COLOURS[times.UNSPLIT] = COLOURS[times.EVALUATION]
SMALLEST = 0.002  # a part below this share of a bar cannot be seen


def phases(runs: Runs) -> list[Panel]:
    """A row of epochs for each run; an edge where the auxiliary variables started anew."""

    def draw(panel: Any) -> list[Any]:
        legend: dict[str, Any] = {}
        for row, records in enumerate(runs.values()):
            if of_phase(records, "serial"):
                start, end = records[0].epoch + 0.5, records[-1].epoch + 1.5
                legend["exact"] = _bar(panel, row, start, end - start, EXACT, "exact epochs")
            for start, end in parallel_spans(records):
                legend["parallel"] = _bar(panel, row, start, end - start, BAND, "parallel epochs")
            for edge in (record.epoch + 0.5 for record in records if record.refresh_s):
                ends = [row - THICK / 2, row + THICK / 2]
                [legend["anew"]] = panel.plot([edge, edge], ends, "k-", linewidth=2, label="variables started anew")
        _rows(panel, list(runs))
        epoch_axis(panel, runs)
        return list(legend.values())

    return [Panel(draw, rows=len(runs))]


def time_split(runs: Runs) -> list[Panel]:
    """A bar for each run: all its seconds, by part."""
    return _stacked({name: run_parts(records) for name, records in runs.items()}, "seconds of the run")


def stage_split(runs: Runs) -> list[Panel]:
    """A bar for each stage of a run: its seconds of training, by part; of parallel epochs, where the run has any."""
    panels = []
    for name, records in runs.items():
        parallel = of_phase(records, "parallel")
        heading = f"{shortened(name)}: " * (len(runs) > 1) + ("parallel epochs" if parallel else "exact epochs")
        stages: dict[str, list[Any]] = {}
        for stage in (stage for record in parallel or records for stage in record.stages):
            stages.setdefault(f"stage {stage.stage}", []).append(stage)
        parts = {of: stage_parts(theirs) for of, theirs in stages.items()}
        panels += _stacked(parts, "seconds of training", heading)
    return panels


def _stacked(rows: Mapping[str, Mapping[str, float]], unit: str, heading: str = "") -> list[Panel]:
    longest = max((sum(parts.values()) for parts in rows.values()), default=0.0)

    def draw(panel: Any) -> list[Any]:
        legend, ends = {}, [0.0] * len(rows)
        for name, colour in COLOURS.items():
            for row, seconds in enumerate(parts.get(name, 0.0) for parts in rows.values()):
                if seconds > SMALLEST * longest:
                    legend[name] = _bar(panel, row, ends[row], seconds, colour, name)
                    ends[row] += seconds
        _rows(panel, list(rows))
        panel.set_xlabel(unit)
        panel.grid(axis="x", alpha=0.3)
        return list(legend.values())

    return [Panel(draw, heading, rows=len(rows))] if longest else []


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
