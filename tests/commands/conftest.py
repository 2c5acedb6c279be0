"""Finished small runs of one, two and three stages, for the commands that look at what is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcsplit import cli
from tests.engine.small import train_here, write_toml

CUTS = {1: [], 2: [3], 3: [2, 4]}
BUILT_IN = {"model__name": "resnet8", "data__pool": True, "schedule__epochs": 3, "schedule__ratio": "1:1"}


@dataclass(frozen=True)
class Run:
    """A configuration and its run directory with checkpoints after the last two epochs."""

    toml: Path
    folder: Path

    @property
    def newest(self) -> Path:
        return self.folder / "checkpoints" / "epoch-0003-step-000000"


def finished(place: Path, stages: int, **changes: object) -> Run:
    """S P S of a network that needs no --config, on random images of 16 x 16."""
    run = Run(write_toml(place / "c.toml", stages, split__cuts=CUTS[stages], **{**BUILT_IN, **changes}), place / "run")
    assert train_here(run.toml, run.folder) == 0
    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Run]:
    """runs(stages): made once, not to be changed."""
    known: dict[int, Run] = {}

    def get(stages: int) -> Run:
        if stages not in known:
            known[stages] = finished(tmp_path_factory.mktemp(f"finished-{stages}"), stages)
        return known[stages]

    return get


@pytest.fixture
def copy(runs: Callable[[int], Run], tmp_path: Path) -> Run:
    """A run of two stages to be damaged."""
    place = tmp_path / "copy"
    shutil.copytree(runs(2).folder.parent, place, symlinks=True)
    return Run(place / "c.toml", place / "run")


@pytest.fixture
def hpcsplit(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """hpcsplit(*words): exit code, standard output and standard error of the command, in this process."""

    def go(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return go
