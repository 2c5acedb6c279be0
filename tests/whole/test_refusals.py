"""What is wrong with a start is said once, by one rank, before any work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.small import train_here, write_toml
from tests.wire.launch import Ended, needs_mpi, python


def start(toml: Path, run_dir: Path, *overrides: object, ranks: int = 2, **variables: Any) -> Ended:
    return python("-m", "hpcsplit", "train", toml, "--run-dir", run_dir, *overrides, ranks=ranks, **variables)


def said_once(ended: Ended, code: int, *parts: str) -> None:
    lines = [line for line in ended.err.splitlines() if line.startswith("hpcsplit: ")]
    assert ended.code == code, ended.err
    assert len(lines) == 1, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in lines[0]


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize(
    ("overrides", "code", "parts"),
    [
        (
            ("--split.cuts", "[2, 4]"),
            77,
            ("2 ranks were started, split.cuts asks for 3", "mpirun -n 3"),
        ),
        (("--optim.lr", "-1"), 65, ("optim.lr",)),
        (("--data.name", "cifar10", "--data.limit_train", "0", "--data.root", "/nowhere"), 65, ("cifar10", "/nowhere")),
    ],
    ids=["world size", "configuration", "data"],
)
def test_under_mpirun(tmp_path: Path, overrides: tuple[str, ...], code: int, parts: tuple[str, ...]) -> None:
    toml, run_dir = write_toml(tmp_path / "c.toml", 2), tmp_path / "run"
    said_once(start(toml, run_dir, *overrides), code, *parts)
    assert not run_dir.exists()


@pytest.mark.mpi
@needs_mpi
def test_alone_where_a_launcher_started_two(tmp_path: Path) -> None:
    toml, run_dir = write_toml(tmp_path / "c.toml", 1), tmp_path / "run"
    said_once(
        start(toml, run_dir, ranks=0, SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0"),
        77,
        "SLURM_STEP_NUM_TASKS says that 2 processes were started, but MPI",
        "Start with the mpirun beside this Python",
    )
    assert not run_dir.exists()


@pytest.mark.parametrize("key", ["run.stages", "split.cuts"])
def test_one_process_is_no_two_stages(tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"run.stages": ("--split.cuts", '"flops"', "--run.stages", 2), "split.cuts": ()}[key]
    toml = write_toml(tmp_path / "c.toml", 2)
    assert train_here(toml, tmp_path / "run", *value, "--run.runner", "mpi") == 77
    assert f"1 rank was started, {key} asks for 2: start with mpirun -n 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


ASLEEP = """
import os, time
import torch
from torch import nn

class Asleep(nn.Module):
    def forward(self, x):
        if os.path.exists("r/records.jsonl"):  # after the first epoch
            time.sleep(120)
        return x

def net(input_shape, classes):
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), Asleep(), nn.Linear(4, classes))
"""


def test_a_run_in_which_nothing_moves_ends_with_exit_69(tmp_path: Path) -> None:
    (tmp_path / "asleep.py").write_text(ASLEEP)
    (tmp_path / "c.toml").write_text(
        '[data]\nname = "fake"\nlimit_train = 32\nlimit_test = 32\nbatch_size = 16\n[model]\nname = "asleep:net"\n'
        '[run]\nrunner = "lockstep"\nstages = 2\nthreads = 1\nbaseline = false\nstall_limit = 0.1\n'
    )
    command = [sys.executable, "-m", "hpcsplit", "train", "c.toml", "--run-dir", "r"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 69
    assert "no progress for" in done.stderr
