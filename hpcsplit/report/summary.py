"""Runs as tables: the one at the end of a run, forecasts beside runs, a line for each run, and every number as CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from operator import itemgetter
from typing import Any

from hpcsplit.host.printable import cell
from hpcsplit.report.lines import bn_differs, number, table
from hpcsplit.report.times import Runs, learning_s, of_phase, rest_s
from hpcsplit.run.records import EpochRecord, StageRecord, flat, known

COLUMNS = ("run", "epochs", "parallel", "test accuracy", "best", "train s", "parallel samples/s", "label signal")
BESIDES = {"top-5": ("test_accuracy_top5", ".2%"), "perplexity": ("test_perplexity", ".4g"), "R²": ("test_r2", ".4f")}
EXPLAINED = "train s: training and refresh; label signal: by stage, in the last parallel epoch"
Expected = tuple[Mapping[str, Any], Sequence[EpochRecord]]  # forecast.json of a run, and its records


def closing_table(
    records: Sequence[EpochRecord], stages: Sequence[Mapping[str, Any]], baseline_samples_per_s: float | None = None
) -> str:
    """The closing report of a run as plain text.

    `stages` has for each stage its number `stage`, `blocks`, `params` and `share` of the cost (a fraction).
    `baseline_samples_per_s` is the speed of exact steps of the whole network on one rank alone in this very run.
    """
    blocks = [
        _accuracy(records) + _objective(records),
        [_times(records)],
        _speed_up(records, baseline_samples_per_s, len(stages)),
        _stages(records, stages),
        _theorem(records),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def numbers_of(records: Sequence[EpochRecord], baseline_samples_per_s: float | None = None) -> dict[str, Any]:
    """What the closing table says, by name; None where nothing was measured.

    Accuracies are fractions, epochs count from 1.  "speed_up" is that of parallel epochs over exact steps of the whole
    network on one rank alone, `baseline_samples_per_s`, "speed_up_over_serial" over the run's exact epochs; "stages"
    has the values of the last parallel epoch, or of the last one.
    """
    last, result = records[-1] if records else EpochRecord(0, "serial"), dict[str, Any]()
    parallel, serial = of_phase(records, "parallel"), of_phase(records, "serial")
    result |= {"epochs": len(records), "parallel_epochs": len(parallel)}
    for name in ("loss", "test_loss", "train_accuracy", "test_accuracy", "test_accuracy_bn", "validation_accuracy"):
        values = known(records, name)
        result[name] = values[-1][0] if values else None
    accuracies = known(records, "test_accuracy")
    best, epoch = max(accuracies, key=itemgetter(0)) if accuracies else (None, None)
    result |= {"best_test_accuracy": best, "best_epoch": epoch}
    for name in ("train_s", "refresh_s", "wall_s"):
        result[name] = sum(getattr(record, name) or 0.0 for record in records)
    rate, exact_rate = median_rate(parallel)[0], median_rate(serial)[0]
    result |= {"parallel_samples_per_s": rate, "serial_samples_per_s": exact_rate}
    result |= {"speed_up": _ratio(rate, baseline_samples_per_s), "speed_up_over_serial": _ratio(rate, exact_rate)}
    shown = parallel[-1] if parallel else last
    return result | {"stages": [asdict(stage) for stage in shown.stages], "weights_sha256": last.weights_sha256}


def beside(runs: Mapping[str, Expected]) -> list[str]:
    """A table of what was forecast and what was measured, a line for each run and kind of epoch that has both.

    Times are those of a step (s); a speed-up is over an exact step of one rank by itself.  The names of the runs stand
    before the lines.
    """
    rows = []
    for name, (expected, records) in runs.items():
        size, alone = expected["batch_size"], expected["one_rank_samples_per_s"]
        for phase, kind in (("serial", "exact"), ("parallel", "parallel")):
            rates = [rate for rate, _ in known(of_phase(records, phase), "samples_per_s") if rate]
            if rates:
                predicted, measured = expected["forecast"][f"{kind}_s"], size / statistics.median(rates)
                row = [f"{name} {kind} epochs".strip(), str(size), f"{predicted:.4f}", f"{measured:.4f}"]
                row.append(f"{predicted / measured:.2f}")
                gains = [size / alone / seconds for seconds in (predicted, measured)] if alone else []
                rows.append(row + [f"{value:.2f}" for value in (*gains, measured / predicted) if gains])
    columns = ("", "batch", "step s", "measured", "ratio", "speed-up", "measured", "ratio")
    lines = ["forecast from a profile before the run, beside the run", *table(columns, rows).splitlines()]
    return lines if rows else []


def median_rate(records: Iterable[EpochRecord]) -> tuple[float | None, int]:
    """The median of the epochs' samples/s, and of how many epochs (those that have one)."""
    rates = [rate for rate, _ in known(records, "samples_per_s")]
    return (statistics.median(rates) if rates else None), len(rates)


def columns(runs: Runs) -> tuple[str, ...]:
    """COLUMNS, and of BESIDES those that a run has."""
    return (*COLUMNS, *(name for name, (key, _) in BESIDES.items() if any(known(each, key) for each in runs.values())))


def overview(runs: Runs) -> list[tuple[str, ...]]:
    """A row of `columns` for each run; of BESIDES the last value."""
    besides = [BESIDES[name] for name in columns(runs)[len(COLUMNS) :]]
    rows: list[tuple[str, ...]] = []
    for name, records in runs.items():
        parallel = of_phase(records, "parallel")
        accuracies = [accuracy for accuracy, _ in known(records, "test_accuracy")]
        signals = [s.label_signal for s in (parallel[-1].stages if parallel else ()) if s.label_signal is not None]
        rows.append(
            (
                name,
                str(len(records)),
                str(len(parallel)),
                number(accuracies[-1] if accuracies else None, ".2%"),
                number(max(accuracies, default=None), ".2%"),
                f"{sum(learning_s(record) or 0.0 for record in records):.1f}",
                number(median_rate(parallel)[0], ".0f"),
                ", ".join(f"{signal:.2f}" for signal in signals) or "-",
                *(number(next((v for v, _ in reversed(known(records, key))), None), form) for key, form in besides),
            )
        )
    return rows


def csv_text(runs: Runs) -> str:
    """A line for each epoch; columns are the names of flat(record), and what was not measured is empty."""
    rows = [{"run": name, **flat(record)} for name, records in runs.items() for record in records]
    columns = sorted(dict.fromkeys(key for row in rows for key in row), key=_part)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writerow({column: cell(column) for column in columns})
    writer.writerows({column: cell(value) for column, value in row.items()} for row in rows)
    return text.getvalue()


def _part(column: str) -> str:
    """What keeps the columns of a part together, whichever run has brought them: whole epochs first, stages last."""
    part = column.partition(".")[0] if "." in column else ""
    return f"{part[5:]:0>9}" if part.startswith("stage") else f" {part}" if part else ""


def _accuracy(records: Sequence[EpochRecord]) -> list[str]:
    """The test loss stands for a task without accuracy."""
    re_estimated = "test_accuracy_bn" if any(map(bn_differs, records)) else ""
    lines = [
        *_reached(records, "test accuracy", "test_accuracy"),
        *_reached(records, "  with BatchNorm re-estimated", re_estimated),
        *_reached(records, "  among the five most likely", "test_accuracy_top5"),
        *_reached(records, "  of the average of the weights", "test_accuracy_ema"),
        *_reached(records, "  of the samples held out", "validation_accuracy"),
        *_reached(records, "test perplexity", "test_perplexity", ".4g", min),
    ]
    losses = _reached(records, "test loss", "test_loss", ".4f", min)
    losses += _reached(records, "  of the average of the weights", "test_loss_ema", ".4f", min)
    return (lines or losses or ["test accuracy: -"]) + _reached(records, "  R²", "test_r2", ".4f")


def _reached(
    records: Sequence[EpochRecord], words: str, name: str, form: str = ".2%", best: Callable[..., Any] = max
) -> list[str]:
    values = known(records, name)
    if not values:
        return []
    (last, epoch), (top, earlier) = values[-1], best(values, key=itemgetter(0))
    return [f"{words}: last {last:{form}} (epoch {epoch}), best {top:{form}} (epoch {earlier})"]


def _objective(records: Sequence[EpochRecord]) -> list[str]:
    """How far a method that records its objective has converged since its variables last started anew."""
    having = [record for record in records if known([record], "terms.objective")]
    if not having:
        return []
    starts = [place for place, record in enumerate(having) if place and record.refresh_s]
    having = having[max(starts, default=0) :]
    values = [value for value, _ in known(having, "terms.objective")]
    since = f", since the variables started anew before epoch {having[0].epoch + 1}" if starts else ""
    first = f"{values[0]:.4g} -> " if len(values) > 1 else ""
    lines = [f"objective (augmented Lagrangian a sample): {first}{values[-1]:.4g}{since}"]
    if first:
        falls = sum(after < before for before, after in pairwise(values))
        lines.append(f"  falling in {falls} of {len(values) - 1} iterations after the first")
    if residuals := [(math.sqrt(square), epoch) for square, epoch in known(having, "terms.residual_sq") if square]:
        (largest, epoch), (last, _) = max(residuals), residuals[-1]
        lines.append(f"  residual: largest {largest:.3g} (epoch {epoch}), last {last:.3g}")
    steps = [
        k * (square + (part.get("weights_step_sq") or 0.0))
        for k, part in enumerate((record.terms or {} for record in having), start=1)
        if (square := part.get("step_sq")) is not None
    ]
    if quarter := len(steps) // 4:
        early, late = statistics.median(steps[:quarter]), statistics.median(steps[-quarter:])
        lines.append(
            f"  k * squared step of iteration k: {early:.3g} in the first quarter -> {late:.3g} in the last (medians)"
        )
    return lines


def _times(records: Sequence[EpochRecord]) -> str:
    rows = []
    for phase in ("serial", "parallel"):
        chosen = of_phase(records, phase)
        rate = number(median_rate(chosen)[0], ".0f")
        rows.append((f"{phase} epochs", str(len(chosen)), _sum(record.train_s for record in chosen), rate))
    refreshed = str(sum(bool(record.refresh_s) for record in records))
    rows += [
        ("refresh", refreshed, _sum(record.refresh_s for record in records), ""),
        ("evaluation and the rest", "", _sum(map(rest_s, records)), ""),
        ("whole run", str(len(records)), _sum(record.wall_s for record in records), ""),
    ]
    return table(("part", "epochs", "seconds", "samples/s (median)"), rows)


def _speed_up(records: Sequence[EpochRecord], baseline: float | None, stage_count: int) -> list[str]:
    parallel = of_phase(records, "parallel")
    parallel_rate, parallel_n = median_rate(parallel)
    if parallel_rate is None:
        return []
    serial_rate, serial_n = median_rate(of_phase(records, "serial"))
    iterations = bool(known(parallel, "terms.objective"))
    passed = f"    {parallel_rate:.1f} samples/s (n = {parallel_n} epochs)"
    lines, stages = [], f"{stage_count} stage{'s' * (stage_count > 1)}"
    if baseline:
        over_core = parallel_rate / baseline
        efficiency = "" if iterations else f" = {over_core / stage_count:.0%} of {stage_count}"
        lines += [
            f"  over one rank alone, whole network, exact steps, measured in this run: {over_core:.2f} x{efficiency}",
            f"{passed} / {baseline:.1f} samples/s",
        ]
    if serial_rate:
        lines += [
            f"  over the serial epochs as run: {parallel_rate / serial_rate:.2f} x",
            f"{passed} / {serial_rate:.1f} samples/s (n = {serial_n} epochs)",
        ]
    heading = f"speed-up of the parallel epochs with {stages} (medians of the epochs' samples/s, training alone)"
    rate = f"{parallel_rate:.1f} samples/s (median of n = {parallel_n} epochs, training alone)"
    lines.insert(0, heading if lines else f"parallel epochs with {stages}: {rate}")
    if iterations:
        lines.append("  samples passed, not progress: an epoch of this method is one iteration over all samples")
    if unmeasured := len(records) - serial_n - parallel_n:
        lines.append(f"  {unmeasured} epochs have no samples/s and are not in n")
    if recomputed := sum(record.recomputed for record in records):
        lines.append(f"  {recomputed} epochs began with recomputed auxiliary variables; they are in n")
    return lines


def _stages(records: Sequence[EpochRecord], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    last = next(reversed(of_phase(records, "parallel")), None)
    measured = {stage.stage: stage for stage in last.stages} if last else {}
    slowest = max((stage.compute_s or 0.0 for stage in measured.values()), default=0.0)
    train_s, heading = None, "stages (no parallel epoch was run)"
    if last:
        train_s = last.train_s
        heading = f"stages in epoch {last.epoch + 1}, the last parallel one"
        heading += f"; comm, I/O, imbalance: exposed share of its {number(train_s, '.2f')} s of training"
    columns = ["stage", "blocks", "parameters", "cost", "compute s", "balance", "comm", "I/O"]
    exposed, reads = ["exposed_comm_s", "exposed_io_s"], any(stage.exposed_data_s for stage in measured.values())
    if reads:  # samples that are not in memory
        columns, exposed = [*columns, "data"], [*exposed, "exposed_data_s"]
        heading = heading.replace("I/O,", "I/O, data,")
    columns, exposed, rows = [*columns, "imbalance"], [*exposed, "imbalance_s"], []
    for info in stages:
        stage = measured.get(info["stage"], StageRecord(info["stage"]))
        shares = [_ratio(getattr(stage, name), train_s) for name in exposed]
        rows.append(
            [
                *(str(info["stage"]), str(info["blocks"]), f"{info['params']:,d}", f"{info['share']:.1%}"),
                number(stage.compute_s, ".2f"),
                number(_ratio(stage.compute_s, slowest), ".2f"),
                *(number(share, ".1%") for share in shares),
                number(stage.violation, ".2e"),
                number(stage.label_signal, ".3f"),
                number(stage.label_ratio, ".3f" if (stage.label_ratio or 1.0) >= 0.001 else ".1e"),
            ]
        )
    return [heading, table([*columns, "violation", "label signal", "label ratio"], rows)]


def _theorem(records: Sequence[EpochRecord]) -> list[str]:
    found = [(record.epoch + 1, record.theorem) for record in records if record.theorem]
    if not found:
        return []
    epoch, t = found[-1]
    residuals, constants = (", ".join(number(value, ".3g") for value in t[key]) for key in ("residuals", "lipschitz"))
    behind = "stage 1" if len(t["residuals"]) == 1 else f"stages 1 to {len(t['residuals'])}"
    worst = "" if t["worst"] is None else f"; largest gap / bound of a sample {t['worst']:.3g}"
    return [
        f"Theorem 1 of TSSM after epoch {epoch}, means over one mini-batch",
        f"  |R_serial - R_split| = {number(t['gap'], '.3g')}, its bound {number(t['bound'], '.3g')}{worst}",
        f"  residual at the input of {behind}: {residuals}",
        f"  Lipschitz constant of {behind}, the loss included, estimated: {constants}",
        *(f"  {sentence}" for sentence in t["missing"]),
    ]


def _sum(values: Iterable[float | None]) -> str:
    there = [value for value in values if value is not None]
    return number(sum(there) if there else None, ".1f")


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
