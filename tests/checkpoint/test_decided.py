"""A run whose epochs are decided on the way: the decisions are obeyed, said, and taken up again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.schedule import auto
from tests.checkpoint.conftest import STOP_AT_ONCE, THREE_STEPS, Run
from tests.engine.small import records, train_here, weights, write_toml

AUTO: dict[str, Any] = {**THREE_STEPS, "schedule__ratio": "auto", "schedule__epochs": 12, "data__validation": 20}


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long an epoch took would make two runs differ."""
    monkeypatch.setattr(auto, "CLEARLY", 0.0)
    monkeypatch.setattr(auto, "DRIFTED", math.inf)


def phases(folder: Path) -> str:
    return "".join(record["phase"][0].upper() for record in records(folder))


def test_the_decisions_are_obeyed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(write_toml(tmp_path / "c.toml", 2, **AUTO), tmp_path / "run")
    assert run.go() == 0
    said = capsys.readouterr().out
    assert "12 epochs; exact or parallel is decided on the way, at most 8 parallel" in said
    assert "epoch 3 will be parallel: the first exact ones are done" in said
    found = phases(run.folder)
    assert found.startswith("SSPPP")
    assert found.endswith("SS")
    for epoch in range(3, 12):
        if found[epoch] != found[epoch - 1]:
            assert f"epoch {epoch + 1} will be {'parallel' if found[epoch] == 'P' else 'serial'}: " in said


@pytest.mark.parametrize("aux", ["keep", "copy"])
def test_a_run_stopped_after_every_epoch_decides_as_one_that_is_not(tmp_path: Path, aux: str) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **AUTO, checkpoint__aux=aux)
    whole, torn = Run(toml, tmp_path / "whole"), Run(toml, tmp_path / "torn")
    assert whole.go() == 0
    assert [torn.go(*STOP_AT_ONCE) for _ in range(12)] == [75] * 11 + [0]
    assert phases(torn.folder) == phases(whole.folder)
    assert weights(torn.folder) == weights(whole.folder)


def test_without_its_records_it_goes_on_with_what_the_checkpoint_says(tmp_path: Path) -> None:
    run = Run(write_toml(tmp_path / "c.toml", 2, **AUTO), tmp_path / "run")
    assert [run.go(*STOP_AT_ONCE) for _ in range(4)] == [75] * 4
    (run.folder / "records.jsonl").unlink()
    assert run.go() == 0
    assert phases(run.folder).startswith("P")  # the fifth epoch, decided before the fourth
    assert phases(run.folder).endswith("SS")


def test_the_exact_control_of_such_a_file_has_nothing_to_decide(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **AUTO)
    assert train_here(toml, tmp_path / "run", "--method.name", "backprop") == 0
    assert phases(tmp_path / "run") == 12 * "S"
