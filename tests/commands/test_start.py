"""How `train` can be started besides: dry, quiet, and telling more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.engine.small import train_here, write_toml
from tests.wire.launch import needs_mpi, python


def files(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", ["penalty", "backprop", "delayed"])
def test_a_dry_run_passes_a_batch_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    toml = write_toml(tmp_path / "c.toml", 3, method__name=method, store__kind="hdf5")
    assert train_here(toml, tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    for k in range(3):
        assert re.search(rf"^stage {k}: .* [\d.]+ ms forward and backward, \d+ MB of memory", said, re.MULTILINE)
    assert "one mini-batch of 32 has gone through all stages; nothing has been trained or written" in said
    assert files(tmp_path) == {toml: toml.read_bytes()}


def test_a_dry_run_of_a_run_that_would_go_on_leaves_it_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = write_toml(tmp_path / "c.toml", 2)
    assert train_here(toml, tmp_path / "run", "--run.time_limit", 1e-6) == 75
    before = files(tmp_path)
    assert train_here(toml, tmp_path / "run", "--dry-run") == 0
    capsys.readouterr()
    assert train_here(toml, tmp_path / "run", "--dry-run", "--optim.lr", 0.3) == 65
    assert "optim.lr = 0.05 there, 0.3 here" in capsys.readouterr().err
    assert files(tmp_path) == before


@needs_mpi
@pytest.mark.mpi
def test_a_dry_run_over_mpi(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 2)
    ended = python("-m", "hpcsplit", "train", toml, "--run-dir", tmp_path / "run", "--dry-run", ranks=2)
    assert (ended.code, ended.err) == (0, "")
    assert len(re.findall(r"^stage \d: .* ms forward and backward", ended.out, re.MULTILINE)) == 2
    assert files(tmp_path) == {toml: toml.read_bytes()}


def test_a_quiet_run_says_how_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2)
    assert train_here(toml, tmp_path / "run", "-q", "--run.time_limit", 1e-6) == 75
    assert capsys.readouterr().out.startswith("stopped: run.time_limit reached; checkpointed")
    assert train_here(toml, tmp_path / "run", "-q") == 0
    said = capsys.readouterr().out
    assert said.startswith("\ntest accuracy: last")
    assert (tmp_path / "run" / "summary.txt").read_text() in said
    assert "epoch 3/5" not in said


def test_a_verbose_run_tells_every_action_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2)
    assert train_here(toml, tmp_path / "run", "--verbose") == 0
    said = re.sub(r"(?m)^\d\d:\d\d:\d\d ", "@", capsys.readouterr().out)
    for action in ("train epoch 1, serial", "refresh the auxiliary variables before epoch 2", "make the stages"):
        assert said.count(f"@{action}\n") == 1
    assert train_here(toml, tmp_path / "run", "-q", "-v") == 64
