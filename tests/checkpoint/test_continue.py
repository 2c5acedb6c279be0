"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.checkpoint.conftest import STOP_AT_ONCE, THREE_STEPS, Run, half_done
from tests.engine.small import Weights, records, train_here, weights, write_toml


def test_stopped_after_every_epoch(tmp_path: Path, never_stopped: Weights) -> None:
    run = Run(write_toml(tmp_path / "c.toml", 2, **THREE_STEPS), tmp_path / "run")
    codes = [run.go(*STOP_AT_ONCE) for _ in range(5)]
    assert codes == [75, 75, 75, 75, 0]
    assert weights(run.folder) == never_stopped


def test_recomputed_rows_are_marked(tmp_path: Path, never_stopped: Weights) -> None:
    run = half_done(tmp_path, checkpoint__aux="recompute", checkpoint__every_epochs=1)
    assert run.go() == 0
    assert [record["recomputed"] for record in records(run.folder)] == [False, False, True, True, False]
    assert weights(run.folder)[:2] == never_stopped[:2]
    assert weights(run.folder)[2:] != never_stopped[2:]


def test_a_change_of_the_type_of_rows_makes_them_recomputed(half: Run, never_stopped: Weights) -> None:
    assert half.go("--store.dtype", "bfloat16") == 0
    assert [record["recomputed"] for record in records(half.folder)] == [False, False, False, True, False]
    assert weights(half.folder)[:3] == never_stopped[:3]


def test_rows_copied_from_files_are_taken_up_in_memory(tmp_path: Path, never_stopped: Weights) -> None:
    run = half_done(tmp_path, checkpoint__aux="copy", store__kind="hdf5")
    assert run.go("--store.kind", "memory") == 0
    assert weights(run.folder) == never_stopped


def test_a_store_that_is_gone_makes_the_rows_recomputed(half: Run, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(half.folder / "aux")
    assert half.go() == 0
    assert "the auxiliary variables are computed anew" in capsys.readouterr().out
    assert [record["recomputed"] for record in records(half.folder)] == [False, False, False, True, False]


def test_a_store_that_is_gone_on_one_of_two_stages(tmp_path: Path) -> None:
    """As after a requeue that gave one node a fresh scratch disk."""
    run = half_done(tmp_path, 3, checkpoint__aux="keep")
    for path in (run.folder / "aux").glob("block-004.*"):
        path.unlink()
    assert run.go() == 0
    assert [record["recomputed"] for record in records(run.folder)] == [False, False, False, True, False]


def test_a_run_of_one_stage(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 1, **THREE_STEPS)
    assert train_here(toml, tmp_path / "run", *STOP_AT_ONCE) == 75
    assert train_here(toml, tmp_path / "run") == 0
    assert train_here(toml, tmp_path / "whole") == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_stay(tmp_path: Path, keep: int) -> None:
    run = Run(write_toml(tmp_path / "c.toml", 2, checkpoint__keep=keep), tmp_path / "run")
    assert run.go() == 0
    found = sorted(p.name for p in run.checkpoints.iterdir() if p.name != "latest")
    assert found == [f"epoch-{n:04d}-step-000000" for n in range(6 - keep, 6)]
    assert (run.checkpoints / "latest").readlink() == Path("epoch-0005-step-000000")


def test_every_second_epoch(tmp_path: Path) -> None:
    run = Run(write_toml(tmp_path / "c.toml", 2, checkpoint__every_epochs=2, checkpoint__aux="copy"), tmp_path / "run")
    assert run.go("--checkpoint.keep", 9) == 0
    names = sorted(p.name[6:10] for p in run.checkpoints.iterdir() if p.name != "latest")
    assert names == ["0002", "0004", "0005"]


@pytest.mark.parametrize("leftover", ["folder", "link"])
def test_leftovers_of_an_interrupted_save_do_no_harm(half: Run, never_stopped: Weights, leftover: str) -> None:
    """A kill can leave the folder being written, or the new link before it replaced the old one."""
    if leftover == "folder":
        shutil.copytree(half.newest, half.checkpoints / "epoch-0004-step-000000.tmp")
    else:
        (half.checkpoints / ".latest.4711.tmp").symlink_to("epoch-0003-step-000000")
    assert half.go() == 0
    assert weights(half.folder) == never_stopped
    assert not [p for p in half.checkpoints.iterdir() if p.name.endswith(".tmp")]


def test_the_newest_is_found_without_the_link(half: Run, never_stopped: Weights) -> None:
    (half.checkpoints / "latest").unlink()
    assert half.go() == 0
    assert weights(half.folder) == never_stopped
