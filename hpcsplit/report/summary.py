"""The table at the end of a run: what was reached, what it cost, and what each stage did."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hpcsplit.report.lines import bn_differs, number, term
from hpcsplit.report.times import rest_s
from hpcsplit.run.records import EpochRecord, StageRecord

WIDTH = 200  # wide enough that no column is folded; lines end where their text ends


def closing_table(
    records: Sequence[EpochRecord],
    *,
    stages: Sequence[Mapping[str, Any]],
    baseline_samples_per_s: float | None,
    stage_count: int,
) -> str:
    """The closing report of a run as plain text.

    `stages` has for each stage its number `stage`, `blocks`, `params` and `share` of the cost (a fraction).
    `baseline_samples_per_s` is the speed of exact steps of the whole network on one rank alone in this very run.
    """
    blocks = [
        _accuracy(records) + _objective(records),
        [_rendered(_time_table(records))],
        _speed_up(records, baseline_samples_per_s, stage_count),
        _stages(records, stages),
        _theorem(records),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def median_rate(records: Iterable[EpochRecord]) -> tuple[float | None, int]:
    """The median of the epochs' samples/s, and of how many epochs (those that have one)."""
    rates = [record.samples_per_s for record in records if record.samples_per_s is not None]
    return (statistics.median(rates) if rates else None), len(rates)


def _accuracy(records: Sequence[EpochRecord]) -> list[str]:
    lines, kinds = [], [("test accuracy", "test_accuracy")]
    if any(map(bn_differs, records)):
        kinds.append(("  with BatchNorm re-estimated", "test_accuracy_bn"))
    kinds.append(("  of the samples held out", "validation_accuracy"))
    for name, key in kinds:
        known = [(getattr(record, key), record.epoch) for record in records if getattr(record, key) is not None]
        if known:
            last, best = known[-1], max(known, key=lambda pair: pair[0])
            lines.append(f"{name}: last {last[0]:.2%} (epoch {last[1] + 1}), best {best[0]:.2%} (epoch {best[1] + 1})")
    return lines or _test_loss(records)


def _test_loss(records: Sequence[EpochRecord]) -> list[str]:
    """Of a task without accuracy."""
    known = [(record.test_loss, record.epoch + 1) for record in records if record.test_loss is not None]
    if not known:
        return ["test accuracy: -"]
    (last, epoch), (best, earlier) = known[-1], min(known)
    return [f"test loss: last {last:.4f} (epoch {epoch}), best {best:.4f} (epoch {earlier})"]


def _objective(records: Sequence[EpochRecord]) -> list[str]:
    """How far a method that records its objective has converged since its variables last started anew."""
    found = [(record, value) for record in records if (value := term(record, "objective")) is not None]
    if not found:
        return []
    starts = [place for place, (record, _) in enumerate(found) if place and record.refresh_s]
    found = found[max(starts, default=0) :]
    values = [value for _, value in found]
    since = f", since the variables started anew before epoch {found[0][0].epoch + 1}" if starts else ""
    falls = sum(after < before for before, after in pairwise(values))
    first = f"{values[0]:.4g} -> " if len(values) > 1 else ""
    lines = [f"objective (augmented Lagrangian a sample): {first}{values[-1]:.4g}{since}"]
    if first:
        lines.append(f"  falling in {falls} of {len(values) - 1} iterations after the first")
    residuals = [(math.sqrt(square), record.epoch) for record, _ in found if (square := term(record, "residual_sq"))]
    if residuals:
        largest, last = max(residuals), residuals[-1]
        lines.append(f"  residual: largest {largest[0]:.3g} (epoch {largest[1] + 1}), last {last[0]:.3g}")
    steps = [
        k * (step + (term(record, "weights_step_sq") or 0.0))
        for k, (record, _) in enumerate(found, start=1)
        if (step := term(record, "step_sq")) is not None
    ]
    if quarter := len(steps) // 4:
        early, late = statistics.median(steps[:quarter]), statistics.median(steps[-quarter:])
        lines.append(
            f"  k * squared step of iteration k: {early:.3g} in the first quarter -> {late:.3g} in the last (medians)"
        )
    return lines


def _time_table(records: Sequence[EpochRecord]) -> Table:
    table = _table("part", "epochs", "seconds", "samples/s (median)")
    for phase in ("serial", "parallel"):
        chosen = [record for record in records if record.phase == phase]
        rate, _ = median_rate(chosen)
        table.add_row(
            f"{phase} epochs", str(len(chosen)), _sum(record.train_s for record in chosen), _cell(rate, ".0f")
        )
    refreshed = sum(1 for record in records if record.refresh_s)
    table.add_row("refresh", str(refreshed), _sum(record.refresh_s for record in records), "")
    table.add_row("evaluation and the rest", "", _sum(rest_s(record) for record in records), "")
    table.add_row("whole run", str(len(records)), _sum(record.wall_s for record in records), "")
    return table


def _speed_up(records: Sequence[EpochRecord], baseline: float | None, stage_count: int) -> list[str]:
    serial = [record for record in records if record.phase == "serial"]
    parallel = [record for record in records if record.phase == "parallel"]
    parallel_rate, parallel_n = median_rate(parallel)
    if parallel_rate is None:
        return []
    serial_rate, serial_n = median_rate(serial)
    iterations = any(term(record, "objective") is not None for record in parallel)
    lines, stages = [], f"{stage_count} stage{'s' * (stage_count > 1)}"
    if baseline:
        over_core = parallel_rate / baseline
        efficiency = "" if iterations else f" = {over_core / stage_count:.0%} of {stage_count}"
        lines += [
            f"  over one rank alone, whole network, exact steps, measured in this run: {over_core:.2f} x{efficiency}",
            f"    {parallel_rate:.1f} samples/s (n = {parallel_n} epochs) / {baseline:.1f} samples/s",
        ]
    if serial_rate:
        lines += [
            f"  over the serial epochs as run: {parallel_rate / serial_rate:.2f} x",
            f"    {parallel_rate:.1f} samples/s (n = {parallel_n} epochs)"
            f" / {serial_rate:.1f} samples/s (n = {serial_n} epochs)",
        ]
    if lines:
        heading = f"speed-up of the parallel epochs with {stages} (medians of the epochs' samples/s, training alone)"
        lines.insert(0, heading)
    else:
        rate = f"{parallel_rate:.1f} samples/s (median of n = {parallel_n} epochs, training alone)"
        lines = [f"parallel epochs with {stages}: {rate}"]
    if iterations:
        lines.append("  samples passed, not progress: an epoch of this method is one iteration over all samples")
    unmeasured = len(serial) + len(parallel) - serial_n - parallel_n
    if unmeasured:
        lines.append(f"  {unmeasured} epochs have no samples/s and are not in n")
    recomputed = sum(record.recomputed for record in records)
    if recomputed:
        lines.append(f"  {recomputed} epochs began with recomputed auxiliary variables; they are in n")
    return lines


def _stages(records: Sequence[EpochRecord], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    last = next((record for record in reversed(records) if record.phase == "parallel"), None)
    measured = {stage.stage: stage for stage in last.stages} if last else {}
    slowest = max((stage.compute_s or 0.0 for stage in measured.values()), default=0.0)
    train_s = last.train_s if last else None
    columns = ["stage", "blocks", "parameters", "cost", "compute s", "balance", "comm", "I/O", "imbalance"]
    table = _table(*columns, "violation", "label signal", "label ratio")
    for info in stages:
        stage = measured.get(info["stage"], StageRecord(info["stage"]))
        table.add_row(
            str(info["stage"]),
            str(info.get("blocks", "-")),
            _cell(info.get("params"), ",d"),
            _cell(info.get("share"), ".1%"),
            _cell(stage.compute_s, ".2f"),
            _cell(_ratio(stage.compute_s, slowest), ".2f"),
            _cell(_ratio(stage.exposed_comm_s, train_s), ".1%"),
            _cell(_ratio(stage.exposed_io_s, train_s), ".1%"),
            _cell(_ratio(stage.imbalance_s, train_s), ".1%"),
            _cell(stage.violation, ".2e"),
            _cell(stage.label_signal, ".3f"),
            _cell(stage.label_ratio, ".3f" if (stage.label_ratio or 1.0) >= 0.001 else ".1e"),
        )
    if last is None:
        heading = "stages (no parallel epoch was run)"
    else:
        heading = f"stages in epoch {last.epoch + 1}, the last parallel one"
        heading += f"; comm, I/O, imbalance: exposed share of its {number(train_s, '.2f')} s of training"
    return [heading, _rendered(table)]


def _theorem(records: Sequence[EpochRecord]) -> list[str]:
    last = next((record for record in reversed(records) if record.theorem), None)
    if last is None or last.theorem is None:
        return []
    t = last.theorem
    residuals, constants = (", ".join(_cell(value, ".3g") for value in t[key]) for key in ("residuals", "lipschitz"))
    behind = "stage 1" if len(t["residuals"]) == 1 else f"stages 1 to {len(t['residuals'])}"
    lines = [
        f"Theorem 1 of TSSM after epoch {last.epoch + 1}, means over one mini-batch",
        f"  |R_serial - R_split| = {_cell(t['gap'], '.3g')}, its bound {_cell(t['bound'], '.3g')}",
        f"  residual at the input of {behind}: {residuals}",
        f"  Lipschitz constant of {behind}, the loss included, estimated: {constants}",
    ]
    if t["worst"] is not None:
        lines[1] += f"; largest gap / bound of a sample {t['worst']:.3g}"
    return lines + [f"  {sentence}" for sentence in t["missing"]]


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.MARKDOWN)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _rendered(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def _sum(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known):.1f}" if known else "-"


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
