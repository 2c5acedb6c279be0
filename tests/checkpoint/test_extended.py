"""A run gets another number of epochs than it was begun with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint.conftest import THREE_STEPS
from tests.engine.small import records, train_here, weights, write_toml

CONSTANT = {**THREE_STEPS, "optim__lr_schedule": "constant"}


def kinds(folder: Path) -> str:
    return "".join(record["phase"][0].upper() for record in records(folder))


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_five_epochs_more_are_those_of_a_longer_run(tmp_path: Path, stages: int) -> None:
    """S PPP S and PPP SS."""
    toml = write_toml(tmp_path / "c.toml", stages, **CONSTANT)
    assert train_here(toml, tmp_path / "run") == 0
    first = records(tmp_path / "run")
    for place in ("run", "whole"):
        assert train_here(toml, tmp_path / place, "--schedule.epochs", 10) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert kinds(tmp_path / "run") == kinds(tmp_path / "whole") == "SPPPSPPPSS"
    assert records(tmp_path / "run")[:5] == first


def test_step_by_step_and_stopped_between(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **{**CONSTANT, "optim__lr_schedule": "step", "optim__lr_step": 2})
    for words in ([5], [9, "--run.time_limit", 1e-6], [9], [10]):
        code = train_here(toml, tmp_path / "run", "--schedule.epochs", *words)
        assert code == (75 if len(words) > 1 else 0)
    assert train_here(toml, tmp_path / "whole", "--schedule.epochs", 10) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_rows_of_a_parallel_phase_that_goes_on_are_taken_up(tmp_path: Path) -> None:
    """With 0:1 the last epoch is parallel; its rows are in the store."""
    toml = write_toml(tmp_path / "c.toml", 2, **CONSTANT, schedule__ratio="0:1", store__kind="hdf5")
    for place, epochs in (("run", 3), ("run", 6), ("whole", 6)):
        assert train_here(toml, tmp_path / place, "--schedule.epochs", epochs) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert not any(record["recomputed"] for record in records(tmp_path / "run"))


def test_the_kinds_of_what_is_done_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seven epochs of 1:3 are S PPP SSS; of ten the sixth and seventh would be parallel."""
    toml = write_toml(tmp_path / "c.toml", 2, **CONSTANT)
    assert train_here(toml, tmp_path / "run", "--schedule.epochs", 7) == 0
    assert kinds(tmp_path / "run") == "SPPPSSS"
    before = weights(tmp_path / "run")
    assert train_here(toml, tmp_path / "run", "--schedule.epochs", 9, "--run.time_limit", 1e-6) == 75
    said = capsys.readouterr().out
    assert "the run has 9 epochs now, in place of 7; the 7 that are done stay as they are" in said
    assert "their kinds stay SPPPSSS, where 9 epochs would begin otherwise" in said
    assert train_here(toml, tmp_path / "run", "--schedule.epochs", 9) == 0  # the plan is that of the checkpoint
    assert kinds(tmp_path / "run") == "SPPPSSSPS"
    assert train_here(toml, tmp_path / "run", "--schedule.epochs", 10) == 0
    assert kinds(tmp_path / "run") == "SPPPSSSPSS"
    assert weights(tmp_path / "run")[:7] == before
    assert len(records(tmp_path / "run")) == 10


def test_a_schedule_that_depends_on_the_epochs_is_extended_on_request_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **THREE_STEPS)  # cosine
    assert train_here(toml, tmp_path / "run") == 0
    before = weights(tmp_path / "run")
    assert train_here(toml, tmp_path / "run", "--schedule.epochs", 8) == 65
    said = capsys.readouterr().err
    rates = "(the learning rate of epoch 6 is 0.01543, after 0.004775)"  # 0.05 (1 + cos(π 5/8)) / 2 and 4/5
    assert "schedule.epochs = 5 there, 8 here, and those that are done had other learning rates" in said
    assert f"add --extend to go on with those of one {rates}" in said
    assert said.count("\n") == 1
    assert train_here(toml, tmp_path / "run", "--schedule.epochs", 8, "--extend") == 0
    assert "--extend: the learning rate of epoch 6 is 0.01543, after 0.004775 in epoch 5" in capsys.readouterr().out
    assert weights(tmp_path / "run")[:5] == before
    assert [record["lr"] for record in records(tmp_path / "run")[4:6]] == pytest.approx([0.004775, 0.01543], rel=1e-3)
    assert train_here(toml, tmp_path / "run", "--schedule.epochs", 8) == 0  # it is what it has now


def test_fewer_than_are_done_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **CONSTANT)
    assert train_here(toml, tmp_path / "run") == 0
    assert train_here(toml, tmp_path / "run", "--schedule.epochs", 4) == 65
    assert "5 there, 4 here, but 5 epochs are done or under way; set it to 5 or more" in capsys.readouterr().err


def test_something_else_that_has_changed_is_refused_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **CONSTANT)
    assert train_here(toml, tmp_path / "run") == 0
    for key, value in (("schedule.warmup", 2), ("optim.lr", 0.3)):
        assert train_here(toml, tmp_path / "run", "--schedule.epochs", 8, f"--{key}", value) == 65
        assert f"{key} = " in capsys.readouterr().err
