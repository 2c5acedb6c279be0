"""What a start may and may not do to a run directory that is already there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcsplit.errors import LaunchError
from hpcsplit.files.checkpoints import complete
from tests.checkpoint.conftest import STOP_AT_ONCE, THREE_STEPS, Run
from tests.checkpoint.starts import Course, learned
from tests.engine.small import train_here, write_toml

REFUSED, INTERNAL, LAUNCH = 65, 70, 77


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "change",
    [("--method.downsample", 2), ("--optim.lr", 0.5), ("--data.limit_train", 64)],
    ids=lambda change: change[0],
)
def test_a_refused_start_touches_nothing(half: Run, change: tuple[str, object]) -> None:
    before = contents(half.folder)
    assert half.go(*change) == REFUSED
    assert contents(half.folder) == before


def test_a_diverged_network_is_not_saved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One mini-batch an epoch: its loss is finite, the weights after it are not."""
    toml = write_toml(tmp_path / "c.toml", 1, data__batch_size=100, optim__lr=1e38)
    assert train_here(toml, tmp_path / "run") == INTERNAL
    said = capfd.readouterr().err
    assert "the loss of the whole network is" in said
    assert "after epoch 1 (serial)" in said
    assert not list((tmp_path / "run").glob("checkpoints/epoch-*"))


@pytest.mark.parametrize(
    ("method", "cure"), [("penalty", "Lower optim.lr, lower method.beta, or set"), ("gsadmm", "Lower optim.lr, or set")]
)
def test_only_options_that_the_method_has_are_a_cure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str, cure: str
) -> None:
    changes = {"method__name": method, "schedule__ratio": "0:1", "schedule__warmup": 0, "optim__lr": 1e30}
    assert train_here(write_toml(tmp_path / "c.toml", 2, **changes), tmp_path / "run") == INTERNAL
    assert re.search(rf"in epoch 1 \(parallel\), .*: training has diverged\. {cure} optim.clip", capfd.readouterr().err)


def test_random_layers_draw_the_same_numbers_after_a_stop(tmp_path: Path) -> None:
    changes = {**THREE_STEPS, "model__name": "tests.engine.tinynet:noisy", "schedule__epochs": 3}
    whole, parts = Course(tmp_path / "whole", **changes), Course(tmp_path / "parts", **changes)
    assert whole.start()
    assert not parts.start(stop=(1, 2))
    assert parts.start()
    assert learned(parts) == learned(whole)


def test_two_runs_do_not_share_a_directory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toml, folder = write_toml(tmp_path / "c.toml", 1), tmp_path / "run"
    folder.mkdir()
    hold = "import sys, pathlib; from hpcsplit.run.lock import RunLock; RunLock.acquire(pathlib.Path(sys.argv[1]));"
    command = [sys.executable, "-c", hold + "print('mine', flush=True); sys.stdin.read()", str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        assert train_here(toml, folder) == LAUNCH
        other.kill()
    assert f"another run is at work in {folder}: process {other.pid}" in capfd.readouterr().err
    assert train_here(toml, folder, *STOP_AT_ONCE) == 75


def test_lockstep_is_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    assert train_here(write_toml(tmp_path / "c.toml", 2), tmp_path / "run") == LAUNCH
    assert "PMI_SIZE says 2: start it without mpirun" in capfd.readouterr().err


def test_a_network_changed_before_the_first_checkpoint_is_cut_anew(tmp_path: Path) -> None:
    toml = write_toml(
        tmp_path / "c.toml", 2, model__name="mlp", model__depth=6, model__width=8, split__cuts="flops", run__stages=2
    )
    broken = ("--store.path", "$NOT_SET_ANYWHERE")
    assert train_here(toml, tmp_path / "run", *broken) == REFUSED
    assert train_here(toml, tmp_path / "run", "--model.depth", 2, "--schedule.epochs", 1) == 0


def test_a_run_that_was_taken_over_writes_no_checkpoint(tmp_path: Path) -> None:
    def taken_over() -> None:
        raise LaunchError("taken over")

    course = Course(tmp_path, schedule__epochs=3, checkpoint__every_epochs=1, store__kind="memory")
    assert not course.start(stop=(0, 0))
    before = contents(tmp_path / "checkpoints")
    with pytest.raises(LaunchError, match="taken over"):
        course.start(prepare=lambda jobs: setattr(jobs[0], "still_ours", taken_over))
    after = contents(tmp_path / "checkpoints")
    assert {name: after[name] for name in before} == before
    assert complete(tmp_path / "checkpoints")[0].name == "epoch-0000-step-000003"
