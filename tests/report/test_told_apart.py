"""Every panel of a report, every number of the closing table and of a line shows its own field and no other's."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hpcsplit.report import bars
from hpcsplit.report.charts import SECTIONS
from hpcsplit.report.figure import drawn, figure_of
from hpcsplit.report.lines import Moment, epoch_line, progress_line
from hpcsplit.report.picture import draw
from hpcsplit.report.summary import closing_table, columns, overview
from hpcsplit.report.tensorboard import scalars
from hpcsplit.run.records import EpochRecord, StageRecord
from tests.report.distinct import FRACTIONS, distinct
from tests.report.test_closing_table import rows

RUN = distinct("sppsp", 3)
OTHER = distinct("spspp", 2)
STAGES = [{"stage": k, "blocks": 701 + k, "params": 8011 + k, "share": 0.1 + 0.2 * k} for k in range(3)]
CHARTS = {chart.heading: chart for charts in SECTIONS.values() for chart in charts}


def test_no_two_numbers_are_equal() -> None:
    numbers: list[float] = []

    def gather(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for each in value:
                gather(each)
        elif isinstance(value, float | int) and not isinstance(value, bool):
            numbers.append(value)

    for record in RUN:
        values = dataclasses.asdict(record)
        del values["epoch"]
        for stage in values["stages"]:
            del stage["stage"]
        assert all(value is not None for key, value in values.items() if key != "weights_sha256")
        gather(values)
    assert len(set(numbers)) == len(numbers) > 200


# ------------------------------------------------------------------------------------------------ charts

Curves = dict[tuple[str, str], list[float]]  # of a panel and a curve: its values


def curves(heading: str, runs: dict[str, list[EpochRecord]]) -> Curves:
    """What a chart draws, by the heading of the panel and the word of the legend."""
    found: Curves = {}
    for panel in CHARTS[heading].panels(runs):
        _, axes = figure_of(4, 4)
        legend = panel.draw(axes)
        found |= {(panel.heading, label): values for label, values in named(axes, legend).items()}
    return found


def named(axes: Any, legend: Sequence[Any]) -> dict[str, list[float]]:
    """The values of each curve by its word in the legend, which has its colour and style."""

    def look(line: Any) -> tuple[Any, ...]:
        return line.get_color(), line.get_linestyle(), line.get_marker() if line.get_linestyle() == "None" else ""

    words = {look(sample): str(sample.get_label()) for sample in legend if isinstance(sample, Line2D)}
    assert len(words) == sum(isinstance(sample, Line2D) for sample in legend)
    return {words[look(line)]: [float(y) for y in line.get_ydata()] for line in axes.lines}


def handles_of(axes: Axes) -> Sequence[Any]:
    legend = axes.get_legend()
    assert legend
    return legend.legend_handles


def field(name: str, scale: float = 1.0) -> list[float]:
    return [scale * getattr(record, name) for record in RUN]


def terms_of(record: EpochRecord) -> dict[str, Any]:
    return {**(record.terms or {})}


def theorem_of(record: EpochRecord) -> dict[str, Any]:
    return {**(record.theorem or {})}


def part(name: str) -> list[float]:
    return [terms_of(record)[name] for record in RUN]


ONE_RUN: dict[str, dict[str, list[float]]] = {
    "Loss": {
        "train": field("loss"),
        "test": field("test_loss"),
        "through λ, train": field("aux_loss"),
        "test, average of the weights": field("test_loss_ema"),
    },
    "Accuracy": {
        "train": field("train_accuracy", 100),
        "test": field("test_accuracy", 100),
        "BatchNorm re-estimated": field("test_accuracy_bn", 100),
        "average of the weights": field("test_accuracy_ema", 100),
        "held out": field("validation_accuracy", 100),
    },
    "Objective and residual": {
        "objective": part("objective"),
        "residual": [math.sqrt(value) for value in part("residual_sq")],
    },
    "Theorem 1 of TSSM": {key: [theorem_of(r)[key] for r in RUN] for key in ("gap", "bound")},
    "Balance": {"balance": [min(c) / max(c) for c in ([s.compute_s or 0.0 for s in r.stages] for r in RUN)]},
    "Speed": {"samples/s": field("samples_per_s")},
    "Learning rate and β": {"learning rate": field("lr"), "β": field("beta")},
}
OF_STAGES: dict[str, tuple[str, float]] = {
    "Violation at each boundary": ("violation", 1.0),
    "Label signal": ("label_signal", 1.0),
    "Penalty signal": ("penalty_signal", 1.0),
    "Memory": ("peak_rss_bytes", 1 / 2**30),
}
DRAWN_OTHERWISE = {"Accuracy and time", "Phases", "Where the time went", "Where each stage's time went"}


def test_every_chart_is_looked_at_here() -> None:
    assert CHARTS.keys() == {*ONE_RUN, *OF_STAGES, *DRAWN_OTHERWISE}


@pytest.mark.parametrize("heading", ONE_RUN)
def test_a_curve_has_the_values_of_its_own_field(heading: str) -> None:
    found = {label: values for (_, label), values in curves(heading, {"one": RUN}).items()}
    assert found == {label: pytest.approx(values) for label, values in ONE_RUN[heading].items()}


@pytest.mark.parametrize("heading", OF_STAGES)
def test_a_curve_of_a_stage_has_the_values_of_that_stage(heading: str) -> None:
    name, scale = OF_STAGES[heading]
    expected = {f"stage {k}": [scale * getattr(record.stages[k], name) for record in RUN] for k in range(3)}
    found = {label: values for (_, label), values in curves(heading, {"one": RUN}).items()}
    assert found == {label: pytest.approx(values) for label, values in expected.items()}


def test_of_several_runs_each_panel_has_one_quantity_and_each_colour_one_run() -> None:
    runs = {"a": RUN, "b": OTHER}
    found = curves("Loss", runs)
    for heading, name in (("train", "loss"), ("test", "test_loss"), ("through λ, train", "aux_loss")):
        for run, records in runs.items():
            assert found[heading, run] == pytest.approx([getattr(record, name) for record in records])
    found = curves("Label signal", runs)
    for k in range(3):
        for run, records in runs.items():
            if k < len(records[0].stages):
                assert found[f"stage {k}", run] == pytest.approx([r.stages[k].label_signal for r in records])
    assert ("stage 2", "b") not in found


def test_the_plane_of_accuracy_and_time() -> None:
    _, axes = figure_of(4, 4)
    (panel,) = CHARTS["Accuracy and time"].panels({"one": RUN})
    panel.draw(axes)
    seconds = 0.0
    for record, x, y in zip(RUN, *axes.lines[0].get_data(), strict=True):
        seconds += record.train_s + record.refresh_s
        assert (x, y) == pytest.approx((seconds, 100 * record.test_accuracy))


# ------------------------------------------------------------------------------------------------ bars

BARS = {
    "computing": "compute_s",
    "exposed messages": "exposed_comm_s",
    "exposed I/O": "exposed_io_s",
    "exposed data": "exposed_data_s",
    "imbalance": "imbalance_s",
}


def lengths(axes: Any) -> list[dict[str, float]]:
    """Of each row of bars the lengths by name; every bar begins where the one before it ends."""
    found: dict[int, dict[str, float]] = {}
    for container in axes.containers:
        (bar,) = container
        row = found.setdefault(round(bar.get_y() + bars.THICK / 2), {})
        assert bar.get_x() == pytest.approx(sum(row.values()))
        row[bar.get_label()] = bar.get_width()
    return [found[row] for row in sorted(found)]


def test_the_seconds_of_each_stage_of_the_parallel_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "SMALLEST", 0.0)
    _, axes = figure_of(4, 4)
    (panel,) = CHARTS["Where each stage's time went"].panels({"one": RUN})
    panel.draw(axes)
    parallel = [record for record in RUN if record.phase == "parallel"]
    for k, row in enumerate(lengths(axes)):
        expected = {word: sum(getattr(r.stages[k], name) for r in parallel) for word, name in BARS.items()}
        assert row == {word: pytest.approx(seconds) for word, seconds in expected.items()}


def test_the_seconds_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "SMALLEST", 0.0)
    _, axes = figure_of(4, 4)
    panels = CHARTS["Where the time went"].panels({"a": RUN, "b": OTHER})
    panels[0].draw(axes)
    for records, row in zip((RUN, OTHER), lengths(axes), strict=True):
        expected = {
            word: sum(statistics.mean(getattr(stage, name) for stage in r.stages) for r in records)
            for word, name in BARS.items()
        }
        total = {
            name: sum(getattr(r, name) for r in records) for name in ("wall_s", "train_s", "refresh_s", "checkpoint_s")
        }
        expected["other training"] = total["train_s"] - sum(expected.values())
        expected |= {"refresh": total["refresh_s"], "checkpoint": total["checkpoint_s"]}
        expected["evaluation"] = total["wall_s"] - sum(expected.values())
        assert row == {word: pytest.approx(seconds) for word, seconds in expected.items()}


# ------------------------------------------------------------------------------------------------ the picture


def test_every_panel_of_the_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    draw({"one": RUN}, tmp_path / "picture.png", "title")
    panels = {axes.get_title(): axes for axes in figures[0].axes}
    shown = {title: named(axes, handles_of(axes)) for title, axes in panels.items()}
    expected = {heading: ONE_RUN[heading] for heading in ("Loss", "Accuracy", "Objective and residual")}
    for heading in ("Violation at each boundary", "Label signal"):
        name, _ = OF_STAGES[heading]
        expected[heading] = {f"stage {k}": [getattr(r.stages[k], name) for r in RUN] for k in range(3)}
    assert shown == {
        title: {label: pytest.approx(values) for label, values in lines.items()} for title, lines in expected.items()
    }


# ------------------------------------------------------------------------------------------------ numbers


def test_the_columns_of_the_closing_tables_stages() -> None:
    text = closing_table(RUN, STAGES)
    table = rows(text)
    heading, last = table["stage"], RUN[4]
    slowest = max(stage.compute_s or 0.0 for stage in last.stages)
    assert last.train_s
    for k, stage in enumerate(last.stages):
        waits: dict[str, Any] = {
            "comm": stage.exposed_comm_s,
            "I/O": stage.exposed_io_s,
            "data": stage.exposed_data_s,
            "imbalance": stage.imbalance_s,
        }
        assert dict(zip(heading, table[str(k)], strict=True)) == {
            "blocks": f"{701 + k}",
            "parameters": f"{8011 + k:,}",
            "cost": f"{10 + 20 * k}.0%",
            "compute s": f"{stage.compute_s:.2f}",
            "balance": f"{(stage.compute_s or 0.0) / slowest:.2f}",
            **{word: f"{seconds / last.train_s:.1%}" for word, seconds in waits.items()},
            "violation": f"{stage.violation:.2e}",
            "label signal": f"{stage.label_signal:.3f}",
            "label ratio": f"{stage.label_ratio:.3f}",
        }
    title = "stages in epoch 5, the last parallel one; comm, I/O, data, imbalance: exposed share"
    assert f"{title} of its {last.train_s:.2f} s" in text


def total(name: str, phase: str = "") -> float:
    return float(sum(getattr(record, name) for record in RUN if phase in record.phase))


def test_the_other_numbers_of_the_closing_table() -> None:
    text = closing_table(RUN, STAGES, 31.25)
    table = rows(text)

    def median(phase: str) -> float:
        return statistics.median(record.samples_per_s or 0.0 for record in RUN if record.phase == phase)

    assert table["part"] == ["epochs", "seconds", "samples/s (median)"]
    for phase, count in (("serial", 2), ("parallel", 3)):
        assert table[f"{phase} epochs"] == [str(count), f"{total('train_s', phase):.1f}", f"{median(phase):.0f}"]
    assert table["refresh"] == ["5", f"{total('refresh_s'):.1f}", ""]
    rest = total("wall_s") - total("train_s") - total("refresh_s")
    assert table["evaluation and the rest"] == ["", f"{rest:.1f}", ""]
    assert table["whole run"] == ["5", f"{total('wall_s'):.1f}", ""]
    for word, name in (
        ("test accuracy", "test_accuracy"),
        ("  with BatchNorm re-estimated", "test_accuracy_bn"),
        ("  among the five most likely", "test_accuracy_top5"),
        ("  of the average of the weights", "test_accuracy_ema"),
        ("  of the samples held out", "validation_accuracy"),
    ):
        values = [getattr(record, name) for record in RUN]
        best = max(range(5), key=values.__getitem__)
        assert f"{word}: last {values[-1]:.2%} (epoch 5), best {values[best]:.2%} (epoch {best + 1})\n" in text
    parallel, serial = median("parallel"), median("serial")
    assert f"exact steps, measured in this run: {parallel / 31.25:.2f} x\n" in text
    assert f"    {parallel:.1f} samples/s (n = 3 epochs) / 31.2 samples/s\n" in text
    assert f"over the serial epochs as run: {parallel / serial:.2f} x\n" in text
    assert f"    {parallel:.1f} samples/s (n = 3 epochs) / {serial:.1f} samples/s (n = 2 epochs)" in text
    theorem = theorem_of(RUN[4])
    gap, bound, worst = (f"{theorem[key]:.3g}" for key in ("gap", "bound", "worst"))
    assert f"|R_serial - R_split| = {gap}, its bound {bound}; largest gap / bound of a sample {worst}\n" in text
    assert f"stages 1 to 2: {', '.join(f'{value:.3g}' for value in theorem['residuals'])}\n" in text
    assert text.endswith(f"estimated: {', '.join(f'{value:.3g}' for value in theorem['lipschitz'])}")


def test_the_objective_of_the_closing_table() -> None:
    """Variables start anew before the second epoch, so the first one is not part of it."""
    records = [dataclasses.replace(record, refresh_s=3.0 if record.epoch == 1 else 0.0) for record in RUN]
    text = closing_table(records, STAGES)
    objective, residual = part("objective")[1:], [math.sqrt(value) for value in part("residual_sq")[1:]]
    assert (
        f"a sample): {objective[0]:.4g} -> {objective[-1]:.4g}, since the variables started anew before epoch 2\n"
        in text
    )
    falls = sum(after < before for before, after in pairwise(objective))
    assert f"falling in {falls} of 3 iterations" in text
    largest = max(range(4), key=residual.__getitem__)
    assert f"residual: largest {residual[largest]:.3g} (epoch {largest + 2}), last {residual[-1]:.3g}\n" in text
    steps = [
        k * (a + b) for k, (a, b) in enumerate(zip(part("step_sq")[1:], part("weights_step_sq")[1:], strict=True), 1)
    ]
    assert f"iteration k: {steps[0]:.3g} in the first quarter -> {steps[-1]:.3g} in the last" in text


def test_the_columns_of_the_overview() -> None:
    [row] = overview({"one": RUN})
    accuracies = [record.test_accuracy or 0.0 for record in RUN]
    rates = [record.samples_per_s or 0.0 for record in RUN if record.phase == "parallel"]
    assert dict(zip(columns({"one": RUN}), row, strict=True)) == {
        "run": "one",
        "epochs": "5",
        "parallel": "3",
        "test accuracy": f"{accuracies[-1]:.2%}",
        "best": f"{max(accuracies):.2%}",
        "train s": f"{total('train_s') + total('refresh_s'):.1f}",
        "parallel samples/s": f"{statistics.median(rates):.0f}",
        "label signal": ", ".join(f"{stage.label_signal:.2f}" for stage in RUN[4].stages),
        "top-5": f"{RUN[4].test_accuracy_top5:.2%}",
        "perplexity": f"{RUN[4].test_perplexity:.4g}",
        "R²": f"{RUN[4].test_r2:.4f}",
    }


def test_the_words_of_a_line() -> None:
    record = RUN[1]
    accuracies = {name: f"{100 * getattr(record, name):.2f}" for name in FRACTIONS}
    assert epoch_line(record, 5, 3723.0).split() == [
        *("epoch", "2/5", "parallel"),
        *("loss", f"{record.loss:.4f}"),
        *("L", f"{terms_of(record)['objective']:.4g}"),
        *("held", "out", accuracies["validation_accuracy"], "%"),
        *("test", accuracies["test_accuracy"], "%"),
        *("perplexity", f"{record.test_perplexity:.4g}"),
        *("R²", f"{record.test_r2:.4f}"),
        *("(bn", accuracies["test_accuracy_bn"], "%)"),
        *("(ema", accuracies["test_accuracy_ema"], "%)"),
        *(f"{record.samples_per_s:.0f}", "samples/s"),
        *(f"{record.wall_s:.1f}", "s"),
        *("ETA", "01:02:03"),
    ]
    moment = Moment(6, "serial", 211, 422, 0.2113, 317.0, 60.0)
    line = "epoch 7/9 serial step 211/422 ( 50 %) loss 0.2113 317 samples/s ETA 00:01:00"
    assert progress_line(moment, 9).split() == line.split()


def test_every_scalar_of_tensorboard_has_the_name_of_its_field() -> None:
    record = RUN[1]
    expected: dict[str, float] = {
        f"epoch/{f.name}": getattr(record, f.name)
        for f in dataclasses.fields(record)
        if f.name != "epoch" and str(f.type).startswith("Number")
    }
    expected |= {f"terms/{name}": value for name, value in terms_of(record).items()}
    expected |= {f"theorem/{name}": theorem_of(record)[name] for name in ("gap", "bound", "worst")}
    for name in ("residuals", "lipschitz"):
        expected |= {f"theorem/{name}.{k}": value for k, value in enumerate(theorem_of(record)[name], 1)}
    for stage in record.stages:
        names = [f.name for f in dataclasses.fields(StageRecord) if f.name != "stage"]
        expected |= {f"{name}/stage{stage.stage}": getattr(stage, name) for name in names}
    assert dict(scalars(record)) == expected


def test_all_charts_are_drawn_from_these_records() -> None:
    empty: list[str] = [heading for heading, chart in CHARTS.items() if not drawn(chart, {"one": RUN})[0]]
    assert empty == []
