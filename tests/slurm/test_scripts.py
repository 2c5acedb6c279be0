"""The text of the scripts: the options that Slurm reads, and what is refused before anything is submitted."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpcsplit.config import load
from tests.wire.launch import ROOT

JOBS = ROOT / "jobs"
AGAIN = {"--requeue": "", "--open-mode": "append"}  # a requeued job goes on in the same file
ONE = {"-J": "hpcsplit", "-N": "1", "--ntasks-per-node": "2", "-o": "%x-%j.out", "-t": "04:00:00", **AGAIN}
ONE |= {"--signal": "B:USR1@300"}
OF_A_TASK = {"-o": "%x-%A_%a.out"}

OPTIONS: dict[str, dict[str, str]] = {
    "one-node": ONE,
    "several-nodes": {**ONE, "-N": "2", "--distribution": "block"},
    "sweep": {**ONE, **OF_A_TASK, "-J": "hpcsplit-sweep", "--array": "0-3%2"},
    "experiment": {**OF_A_TASK, **AGAIN, "-N": "1", "-t": "12:00:00", "--signal": "B:USR1@600"},
    "look": {"-J": "hpcsplit-look", "-N": "1", "-n": "1", "-o": "%x-%j.out", "-t": "00:30:00", **AGAIN},
}


def options(lines: list[str]) -> dict[str, str]:
    """The #SBATCH options, with their values."""
    words = [word for line in lines if line.startswith("#SBATCH ") for word in shlex.split(line)[1:]]
    found: dict[str, str] = {}
    while words:
        key, _, value = words.pop(0).partition("=")
        if words and not words[0].startswith("-") and not value:
            value = words.pop(0)
        assert key not in found, f"{key} is given twice"
        found[key] = value
    return found


def test_options_come_before_the_first_command() -> None:
    """Slurm reads no further than that."""
    scripts = {path.stem: path.read_text().splitlines() for path in JOBS.glob("*.sbatch")}
    assert {name: options(lines) for name, lines in scripts.items()} == OPTIONS
    for name, lines in scripts.items():
        assert lines[0] == "#!/bin/bash", name
        commands = [n for n, line in enumerate(lines) if line and not line.startswith("#")]
        assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < commands[0], name


def test_bash_can_read_every_script() -> None:
    for path in (*JOBS.iterdir(), *(ROOT / "tools" / "slurm").iterdir()):
        if path.suffix != ".toml":
            subprocess.run(["bash", "-n", path], check=True)
            assert not re.search(r"[ \t]$", path.read_text(), re.MULTILINE), path.name
            assert max(map(len, path.read_text().splitlines())) <= 120, path.name


def test_every_configuration_is_sound_and_says_how_it_is_started() -> None:
    for path in JOBS.glob("*.toml"):
        ranks = load(path).split.stages or 2
        assert f"#   mpirun -n {ranks} python -m hpcsplit train jobs/{path.name}\n" in path.read_text()


def start(folder: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """A script started where sbatch only notes its words: what it said, and those words."""
    (folder / "jobs").symlink_to(JOBS)
    sbatch = folder / "sbatch"
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {folder}/submitted\nexit 1\n')
    sbatch.chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "HPCSPLIT_VENV": str(Path(sys.executable).parents[1])}
    done = subprocess.run(
        ["bash", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "HOME": str(folder), **path, **variables},
        capture_output=True,
        text=True,
    )
    submitted = folder / "submitted"
    return done, submitted.read_text().splitlines() if submitted.exists() else []


@pytest.mark.parametrize("name", ["chain", "pipeline", "experiment.sbatch"])
def test_without_words_it_says_how_it_is_used(name: str, tmp_path: Path) -> None:
    done, submitted = start(tmp_path, f"jobs/{name}")
    assert (done.returncode, submitted) == (64, [])
    assert f"jobs/{name} " in done.stderr


@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        (["sph-tabel-1"], {}, "tools/reproduce: 'sph-tabel-1' is no experiment; did you mean sph-table-1?"),
        (["plane", "--only", "exakt"], {}, "tools/reproduce: 'exakt' is no row; did you mean exact?"),
        (["plane"], {"SLURM_JOB_ID": "7"}, "start it without sbatch, whose options go behind --"),
        (
            ["plane", "--only", "exact"],
            {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "8"},
            "SLURM_ARRAY_TASK_ID = 8: the tasks are 0 to 7",
        ),
    ],
)
def test_an_experiment_is_refused_before_anything_is_submitted(
    words: list[str], variables: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    done, submitted = start(tmp_path, "jobs/experiment.sbatch", *words, "--out", str(tmp_path), **variables)
    assert (done.returncode, submitted) == (64, [])
    assert sentence in done.stderr


def test_an_experiment_stops_where_slurm_refuses_an_array(tmp_path: Path) -> None:
    words = ["plane", "--only", "exact,exact-2", "--out", str(tmp_path), "--", "-p", "nowhere"]
    done, submitted = start(tmp_path, "jobs/experiment.sbatch", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert submitted == [
        "--parsable -J plane -p nowhere -n 1 --exclusive --array=0,2,4 jobs/experiment.sbatch "
        f"plane --only exact,exact-2 --out {tmp_path}"
    ]


def test_a_sweep_refuses_a_task_without_a_value(tmp_path: Path) -> None:
    given = {"SLURM_ARRAY_TASK_ID": "2", "HPCSPLIT_SWEEP": "run.seed 5 6"}
    done, _ = start(tmp_path, "jobs/sweep.sbatch", "c.toml", **given)
    assert (done.returncode, done.stderr) == (
        64,
        "jobs/sweep.sbatch: no value for task 2 in HPCSPLIT_SWEEP = run.seed 5 6\n",
    )
