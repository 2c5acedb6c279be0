"""TensorBoard's scalars are the numbers of the records, each epoch once, whatever was there before."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from hpcsplit import cli
from hpcsplit.errors import ConfigError
from hpcsplit.report import tensorboard
from hpcsplit.report.tensorboard import Board, scalars
from tests.report.made import BARE, run

INSTALLED = importlib.util.find_spec("tensorboard") is not None


def test_scalars_are_the_numbers_of_a_record() -> None:
    record = run("sp", stages=3)[1]
    found = dict(scalars(record))
    assert found["epoch/test_accuracy"] == record.test_accuracy
    assert found["label_signal/stage0"] == record.stages[0].label_signal
    assert found["violation/stage2"] == record.stages[2].violation
    assert found["terms/objective"] == 1.0
    assert found["theorem/gap"] == 0.0243
    assert not {"epoch/epoch", "epoch/recomputed", "epoch/phase", "stage/stage0"} & found.keys()
    assert dict(scalars(BARE[0])) == {}


@pytest.mark.skipif(not INSTALLED, reason="no tensorboard here (the extra of that name)")
def test_no_epoch_is_there_twice(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read() -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(tmp_path), purge_orphaned_data=False)
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    records = run("spps")
    first = Board(tmp_path)
    first.begin([])
    for record in records[:3]:
        first.add(record)
    assert [step for step, _ in read()["epoch/loss"]] == [1, 2, 3]
    again = Board(tmp_path)  # continued from the checkpoint after the second epoch
    again.begin(records[:2])
    for record in records[2:]:
        again.add(record)
    found = read()
    expected: list[tuple[int, Any]] = [(r.epoch + 1, pytest.approx(r.loss)) for r in records]
    assert found["epoch/loss"] == expected
    assert [step for step, _ in found["penalty_signal/stage0"]] == [2, 3]


def test_without_the_package_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    (tmp_path / "c.toml").write_text("[run]\ntensorboard = true\n")
    assert cli.main(["train", str(tmp_path / "c.toml"), "--run-dir", str(tmp_path / "run")]) == ConfigError.exit_code
    assert "pip install 'hpcsplit[tensorboard]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
