"""Half-finished runs of two stages in one process, to be damaged and continued."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.small import Weights, train_here, weights, write_toml

STOP_AT_ONCE = ("--run.time_limit", 1e-6)  # with a checkpoint: after one epoch where it has three steps
THREE_STEPS = {"data__batch_size": 40}


@dataclass(frozen=True)
class Run:
    """A configuration and its run directory."""

    toml: Path
    folder: Path

    def go(self, *overrides: object) -> int:
        return train_here(self.toml, self.folder, *overrides)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def newest(self) -> Path:
        return self.checkpoints / "epoch-0003-step-000000"


def half_done(place: Path, stages: int = 2, **changes: object) -> Run:
    """S PP of S PPP S are done; checkpoints after two and three epochs are there."""
    run = Run(write_toml(place / "c.toml", stages, **{**THREE_STEPS, **changes}), place / "run")
    for _ in range(3):
        assert run.go(*STOP_AT_ONCE) == 75
    return run


@pytest.fixture(scope="session")
def prototype(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return half_done(tmp_path_factory.mktemp("half"), checkpoint__aux="keep")


@pytest.fixture
def half(prototype: Run, tmp_path: Path) -> Run:
    """A copy of a run after three of five epochs, rows kept in its store."""
    shutil.copytree(prototype.folder.parent, tmp_path / "copy", symlinks=True)
    return Run(tmp_path / "copy" / "c.toml", tmp_path / "copy" / "run")


@pytest.fixture(scope="session")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    place = tmp_path_factory.mktemp("whole")
    run = Run(write_toml(place / "c.toml", 2, **THREE_STEPS), place / "run")
    assert run.go() == 0
    return weights(run.folder)


@pytest.fixture
def refused(half: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*overrides): the sentence with which the run does not go on."""

    def go(*overrides: object) -> str:
        before = (half.folder / "records.jsonl").read_bytes()
        capsys.readouterr()
        assert half.go(*overrides) == 65
        assert (half.folder / "records.jsonl").read_bytes() == before
        return capsys.readouterr().err

    return go
