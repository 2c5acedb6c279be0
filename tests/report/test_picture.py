from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from hpcsplit.records import EpochRecord, StageRecord
from hpcsplit.report.picture import draw, parallel_spans


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


def test_parallel_epochs_are_shaded_stretch_by_stretch() -> None:
    assert parallel_spans(run("sppsp")) == ((1.5, 3.5), (4.5, 5.5))
    assert parallel_spans(run("ss")) == ()
