"""A run directory that was copied, unpacked elsewhere, or lies where there are no links goes on to the same bits."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from hpcsplit.files import atomic
from tests.checkpoint.conftest import Run
from tests.engine.small import Weights, weights

LATEST = "checkpoints/latest does not lead to the newest checkpoint"


def log(run: Run) -> str:
    return (run.folder / "log" / "rank-000.log").read_text()


def test_copied_with_its_links_followed(half: Run, never_stopped: Weights, tmp_path: Path) -> None:
    """As by cp -rL, rsync -L, scp -r: "latest" is a folder."""
    shutil.copytree(half.folder, tmp_path / "elsewhere" / "run", symlinks=False)
    moved = Run(half.toml, tmp_path / "elsewhere" / "run")
    assert (moved.checkpoints / "latest").is_dir()
    assert not (moved.checkpoints / "latest").is_symlink()
    assert moved.go() == 0
    assert weights(moved.folder) == never_stopped
    assert log(moved).count(LATEST) == 1  # of several checkpoints
    assert (moved.checkpoints / "latest").is_dir()


def test_where_there_are_no_links(half: Run, never_stopped: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    (half.checkpoints / "latest").unlink()
    monkeypatch.setattr(os, "symlink", refuse)
    assert half.go() == 0
    assert weights(half.folder) == never_stopped
    assert log(half).count(f"{LATEST} (Operation not permitted)") == 1
    assert [p.name for p in half.checkpoints.iterdir() if p.name.startswith(".")] == []


def test_unpacked_with_a_file_in_place_of_the_link(half: Run, never_stopped: Weights) -> None:
    """As by an archive that knows no links."""
    (half.checkpoints / "latest").unlink()
    (half.checkpoints / "latest").write_text(half.newest.name)
    assert half.go() == 0
    assert weights(half.folder) == never_stopped
    assert (half.checkpoints / "latest").is_symlink()
    assert LATEST not in log(half)


def test_a_link_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.replace_symlink(tmp_path / "latest", "x")
    assert os.listdir(tmp_path) == ["latest"]
