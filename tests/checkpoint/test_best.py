"""The checkpoint of the best epoch is kept and found, and a run ends when it is no use to go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsplit import cli
from hpcsplit.engine.best import best_epoch, enough, score
from hpcsplit.run.records import EpochRecord
from tests.checkpoint.conftest import STOP_AT_ONCE, THREE_STEPS, Run
from tests.checkpoint.starts import Course, learned
from tests.engine.small import records, train_here, weights, write_toml

HELD_OUT = {**THREE_STEPS, "data__validation": 20, "schedule__epochs": 9, "method__name": "backprop"}
BEST = {**HELD_OUT, "checkpoint__best": True, "checkpoint__keep": 1, "checkpoint__every_epochs": 0}


def of(scores: Sequence[float | None]) -> list[EpochRecord]:
    return [EpochRecord(k, "serial", test_loss=1.0, test_accuracy=s) for k, s in enumerate(scores) if s is not None]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, None),
        ({"test_loss": 2.0, "test_accuracy": 0.5}, 0.5),
        ({"test_loss": 2.0}, -2.0),
        ({"test_loss": 2.0, "test_accuracy": 0.5, "validation_loss": 3.0, "validation_accuracy": 0.4}, 0.4),
        ({"test_loss": 2.0, "validation_loss": 3.0}, -3.0),
    ],
)
def test_what_epochs_are_compared_by(values: dict[str, Any], wanted: float | None) -> None:
    assert score(EpochRecord(0, "serial", **values)) == wanted


@given(st.lists(st.one_of(st.none(), st.integers(0, 5).map(float)), max_size=12))
def test_the_best_epoch_is_the_first_of_the_highest(scores: list[float | None]) -> None:
    known = [s for s in scores if s is not None]
    assert best_epoch(of(scores)) == (scores.index(max(known)) if known else None)


def by_counting(scores: Sequence[float], patience: int, delta: float) -> int | None:
    """The last epoch, as common libraries have it, which count up and start anew with each improvement."""
    best, waited = -1e9, 0
    for epoch, value in enumerate(scores):
        best, waited = (value, 0) if value > best + delta else (best, waited + 1)
        if waited >= patience:
            return epoch
    return None


@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=14), st.integers(1, 4), st.sampled_from([0.0, 1.0]))
def test_patience_is_that_of_a_loop_over_the_epochs(scores: list[float], patience: int, delta: float) -> None:
    ends = by_counting(scores, patience, delta)
    told = [epoch for epoch in range(len(scores)) if enough(of(scores[: epoch + 1]), patience, delta)]
    assert (told[0] if told else None) == ends
    assert not enough(of(scores), 0, delta)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("best")
    run = Run(write_toml(place / "c.toml", 2, **BEST), place / "run")
    assert run.go() == 0
    return run


def names(run: Run) -> list[str]:
    return sorted(p.name for p in run.checkpoints.iterdir() if p.is_dir() and not p.is_symlink())


def best_by_hand(run: Run) -> int:
    scores = [record["validation_accuracy"] for record in records(run.folder)]
    assert max(scores) > scores[-1]  # or nothing is tested
    return scores.index(max(scores))


def test_the_best_epoch_is_kept_besides_the_newest(run: Run) -> None:
    best = f"epoch-{best_by_hand(run) + 1:04d}-step-000000"
    assert names(run) == [best, "epoch-0009-step-000000"]
    assert (run.checkpoints / "best").read_text() == f"{best}\n"


def test_commands_find_it(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best, own = best_by_hand(run), ["--config", str(run.toml)]
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.folder), "--checkpoint", "best", *own, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights_sha256"] == records(run.folder)[best]["weights_sha256"]
    toml = write_toml(tmp_path / "c.toml", 2, **HELD_OUT)
    assert train_here(toml, tmp_path / "run", "--continue-from", run.folder, "--checkpoint", "best") == 0
    assert f"begins with 32 of 32 tensors of {run.checkpoints}/epoch-{best + 1:04d}" in capsys.readouterr().out


def test_a_run_without_one_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **THREE_STEPS, schedule__epochs=1)
    assert train_here(toml, tmp_path / "run") == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "--checkpoint", "best", "--config", str(toml)]) == 65
    assert "no checkpoint that is marked as the best one" in capsys.readouterr().err


def test_a_run_that_was_stopped_knows_its_best_epoch(run: Run, tmp_path: Path) -> None:
    torn = Run(write_toml(tmp_path / "c.toml", 2, **BEST), tmp_path / "run")
    while torn.go(*STOP_AT_ONCE) == 75:
        pass
    assert names(torn) == names(run)
    assert (torn.checkpoints / "best").read_bytes() == (run.checkpoints / "best").read_bytes()
    assert weights(torn.folder) == weights(run.folder)


def test_a_start_that_died_before_it_had_marked_it_is_made_good(run: Run, tmp_path: Path) -> None:
    torn = Run(write_toml(tmp_path / "c.toml", 2, **BEST), tmp_path / "run")
    for _ in range(best_by_hand(run) + 1):
        assert torn.go(*STOP_AT_ONCE) == 75
    expected = (torn.checkpoints / "best").read_text()
    (torn.checkpoints / "best").write_text("epoch-0001-step-000000\n")
    assert torn.go(*STOP_AT_ONCE) == 75
    assert (torn.checkpoints / "best").read_text() == expected
    assert expected.strip() in names(torn)


# ------------------------------------------------------------------------------------------------ early stopping


def test_it_ends_as_one_that_is_done(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **HELD_OUT)
    ends = by_counting([record["validation_accuracy"] for record in records(run.folder)], 2, 0.0)
    assert ends is not None
    assert ends < 8
    assert train_here(toml, tmp_path / "run", "--schedule.patience", 2) == 0
    said = capsys.readouterr().out
    assert f"ended early: epoch {ends + 1} is number 2 without a score on the samples held out" in said
    assert weights(tmp_path / "run") == weights(run.folder)[: ends + 1]
    assert train_here(toml, tmp_path / "run", "--schedule.patience", 2) == 0  # once more: it is done
    assert "ended early: " in capsys.readouterr().out
    assert len(records(tmp_path / "run")) == ends + 1
    assert train_here(toml, tmp_path / "run", "--schedule.patience", 0) == 0  # and it can go on
    assert weights(tmp_path / "run") == weights(run.folder)


@pytest.mark.parametrize("method", ["backprop", "penalty"])
def test_a_run_that_was_stopped_ends_after_the_same_epoch(tmp_path: Path, method: str) -> None:
    patient = {**HELD_OUT, "method__name": method, "schedule__patience": 2}
    whole, torn = Course(tmp_path / "whole", **patient), Course(tmp_path / "torn", **patient)
    assert whole.start()
    assert len(whole.records) < 9
    places = [(epoch, 1) for epoch in range(1, len(whole.records), 2)]
    for place in places:
        assert not torn.start(stop=place)
    assert torn.start()
    assert learned(torn) == learned(whole)


def test_patience_wants_samples_that_are_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, schedule__patience=3)
    assert cli.main(["config", str(toml)]) == 65
    assert "schedule.patience = 3 judges epochs by samples that are not trained on" in capsys.readouterr().err
