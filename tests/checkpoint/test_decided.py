"""A run whose epochs are decided on the way: the decisions are obeyed, said, and taken up again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.schedule import auto
from tests.checkpoint.conftest import STOP_AT_ONCE, THREE_STEPS, Run
from tests.checkpoint.starts import Course, learned
from tests.engine.small import records, train_here, write_toml

AUTO: dict[str, Any] = {**THREE_STEPS, "schedule__ratio": "auto", "schedule__epochs": 12, "data__validation": 20}


def stop_the_clock(patched: pytest.MonkeyPatch) -> None:
    """How long an epoch took would make two runs differ."""
    patched.setattr(auto, "CLEARLY", 0.0)
    patched.setattr(auto, "DRIFTED", math.inf)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)


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


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Course:
    with pytest.MonkeyPatch.context() as patched:
        stop_the_clock(patched)
        course = Course(tmp_path_factory.mktemp("whole"), **AUTO)
        assert course.start()
    return course


@pytest.mark.parametrize("aux", ["keep", "copy"])
def test_a_run_that_was_stopped_decides_as_one_that_was_not(tmp_path: Path, aux: str, never_stopped: Course) -> None:
    """Before anything is decided, in the first parallel phase, and later."""
    torn = Course(tmp_path, **AUTO, checkpoint__aux=aux)
    for place in [(1, 1), (3, 1), (8, 1)]:
        assert not torn.start(stop=place)
    assert torn.start()
    assert learned(torn) == learned(never_stopped)


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
