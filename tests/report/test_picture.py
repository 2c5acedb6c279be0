from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from hpcsplit.report.curves import parallel_spans
from hpcsplit.report.picture import draw
from hpcsplit.run.records import EpochRecord, StageRecord


def run(phases: str) -> list[EpochRecord]:
    stages = (StageRecord(0, violation=0.0, label_signal=0.4), StageRecord(1, violation=0.01, label_signal=1.0))
    return [
        EpochRecord(
            epoch,
            "parallel" if phase == "p" else "serial",
            loss=2.0 / (epoch + 1),
            test_accuracy=0.5,
            stages=stages if phase == "p" else (),
        )
        for epoch, phase in enumerate(phases)
    ]


def with_terms(records: list[EpochRecord], **terms: list[float]) -> list[EpochRecord]:
    found = [{name: values[k] for name, values in terms.items()} for k in range(len(records))]
    return [dataclasses.replace(record, terms=one) for record, one in zip(records, found, strict=True)]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """panels(runs): what would be drawn, by heading."""

    def drawn(runs: dict[str, list[EpochRecord]]) -> dict[str, Any]:
        figures: list[Figure] = []
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
            draw(runs, tmp_path / "picture.png", "title")
        return {axes.get_title(): axes for axes in figures[0].axes}

    return drawn


def legend(panel: Any) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]


OBJECTIVE = "Objective and residual"


@pytest.mark.parametrize(
    "runs",
    [{"one": run("sppsp")}, {"one": run("sppsp"), "frozen": run("spp")}, {"one": run("s")}, {"one": run("sss")}, {}],
)
def test_every_kind_of_run_gives_a_picture(tmp_path: Path, runs: dict[str, list[EpochRecord]]) -> None:
    path = tmp_path / "curves.png"
    draw(runs, path, "title")
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 500
    assert pixels[..., :3].min() < 0.5


def test_an_objective_has_a_panel_of_its_own(panels: Any) -> None:
    records = with_terms(run("ppp"), objective=[4.0, 2.0, 1.0], residual_sq=[0.0, 0.25, 0.0625])
    panel = panels({"one": records})[OBJECTIVE]
    objective, residual = (list(line.get_ydata()) for line in panel.lines)
    assert objective == [4.0, 2.0, 1.0]
    assert residual[1:] == [0.5, 0.25]
    assert residual[0] != residual[0]  # zero is left out
    assert panel.get_yscale() == "log"
    assert legend(panel) == ["objective", "residual", "parallel epochs"]


def test_one_run_of_several_with_an_objective_gives_the_panel(panels: Any) -> None:
    runs = {"exact": run("ss"), "pdadmm": with_terms(run("ppp"), objective=[4.0, 2.0, 1.0])}
    panel = panels(runs)[f"{OBJECTIVE}: objective"]
    assert [list(line.get_ydata()) for line in panel.lines] == [[4.0, 2.0, 1.0]]
    assert legend(panel) == ["pdadmm", "parallel epochs"]


@pytest.mark.parametrize("objectives", [[4.0, -0.5, 1.0], [0.0, 0.0, 0.0]])
def test_an_objective_that_is_not_positive_is_shown_too(tmp_path: Path, panels: Any, objectives: list[float]) -> None:
    records = {"one": with_terms(run("ppp"), objective=objectives)}
    panel = panels(records)[OBJECTIVE]
    assert panel.get_yscale() != "log"
    assert panel.get_ylim()[0] < min(objectives)
    draw(records, tmp_path / "curves.png", "title")


def test_without_an_objective_there_is_no_such_panel(panels: Any) -> None:
    assert OBJECTIVE not in panels({"one": with_terms(run("ppp"), phi=[4.0, 2.0, 1.0])})


def test_re_estimated_statistics_have_a_curve_only_where_they_change_something(panels: Any) -> None:
    same = [dataclasses.replace(record, test_accuracy_bn=record.test_accuracy) for record in run("spp")]
    assert legend(panels({"one": same})["Accuracy"]) == ["test", "parallel epochs"]
    one_differs = [*same[:-1], dataclasses.replace(same[-1], test_accuracy_bn=0.9)]
    assert "BatchNorm re-estimated" in legend(panels({"one": one_differs})["Accuracy"])


def test_zero_has_no_place_on_a_log_scale(panels: Any) -> None:
    """The first stage has no boundary at its input."""
    assert legend(panels({"one": run("spp")})["Violation at each boundary"]) == ["stage 1", "parallel epochs"]


@pytest.mark.parametrize(("epochs", "scale"), [(29, "linear"), (31, "log")])
def test_losses_that_span_much_are_on_a_log_scale(panels: Any, epochs: int, scale: str) -> None:
    """Losses are 2 / 1 to 2 / epochs."""
    assert panels({"one": run("s" * epochs)})["Loss"].get_yscale() == scale


def test_panels_of_one_figure_have_one_scale(panels: Any) -> None:
    """Objectives and residuals, which differ by nature, have their own."""
    records = with_terms(run("sspp"), objective=[4.0, 2.0, 1.0, 0.5], residual_sq=[1e-4, 1e-4, 1e-6, 1e-6])
    records = [dataclasses.replace(record, test_loss=20.0) for record in records]
    found = panels({"one": records, "another": run("sp")})
    assert found["Loss: train"].get_ylim() == found["Loss: test"].get_ylim()
    assert found[f"{OBJECTIVE}: objective"].get_ylim() != found[f"{OBJECTIVE}: residual"].get_ylim()


def test_parallel_epochs_are_shaded_stretch_by_stretch() -> None:
    assert parallel_spans(run("sppsp")) == ((1.5, 3.5), (4.5, 5.5))
    assert parallel_spans(run("ss")) == ()
