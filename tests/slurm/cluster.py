"""A real Slurm of two made-up nodes for the tests, and the jobs submitted to it."""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.wire.launch import PYTHONPATH, ROOT

STANDIN = Path(__file__).parent / "standin"
NODES, GPUS = 2, 2
LIMIT_S = 240  # for anything, on a busy machine


def missing() -> str:
    """Why there can be no test cluster here; empty when there can."""
    if os.geteuid():
        return "the test cluster needs root"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=path)]
    return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)" if absent else ""


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens on."""
    while True:
        first = random.randrange(20000, 30000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue


@dataclass(frozen=True)
class Cluster:
    """tools/slurm/up in a folder of its own."""

    folder: Path
    settings: dict[str, str]

    @classmethod
    def start(cls, folder: Path) -> Cluster:
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "PMI", "OMPI_", "HPCSPLIT_"))
        }
        knobs = {"DIR": folder, "NODES": NODES, "GPUS": GPUS, "CPUS": 4, "PORT": free_ports(NODES + 1)}
        settings = {**clean, **{f"TEST_SLURM_{k}": str(v) for k, v in knobs.items()}}
        settings["SLURM_CONF"] = str(folder / "slurm.conf")
        settings["PYTHONPATH"] = PYTHONPATH
        settings["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
        cluster = cls(folder, settings)
        up = cluster.run("tools/slurm/up")
        assert up.returncode == 0, up.stderr
        assert up.stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
        return cluster

    def stop(self) -> None:
        down = self.run("tools/slurm/down", "--purge")
        assert (down.returncode, down.stderr) == (0, "")

    def run(self, *words: object, place: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command with this cluster's settings; its output is captured."""
        return subprocess.run(
            [str(word) for word in words],
            cwd=place,
            env={**self.settings, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def say(self, *words: object) -> str:
        """The output of a command that must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout


@dataclass(frozen=True)
class Desk:
    """A folder to submit from: it looks like the project's root to the scripts."""

    cluster: Cluster
    place: Path
    variables: dict[str, str]

    def __post_init__(self) -> None:
        (self.place / "jobs").symlink_to(ROOT / "jobs")

    def sbatch(self, *words: object, **variables: str) -> Job:
        done = self.cluster.run("sbatch", "--parsable", *words, place=self.place, **{**self.variables, **variables})
        assert done.returncode == 0, done.stderr
        return Job(self, done.stdout.strip())

    def submit(self, *words: object, **variables: str) -> list[str]:
        """The lines that jobs/pipeline, jobs/chain or jobs/experiment.sbatch prints."""
        done = self.cluster.run("bash", *words, place=self.place, **{**self.variables, **variables})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def started(self, run: str) -> list[str]:
        """What the stand-in was started with for a run directory, one line a start."""
        path = self.place / "started" / run
        return path.read_text().splitlines() if path.exists() else []


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    desk: Desk
    id: str

    def facts(self) -> dict[str, str]:
        """What scontrol knows of it."""
        line = self.desk.cluster.say("scontrol", "show", "job", self.id, "--oneliner")
        return dict(re.findall(r"(\w+)=(\S*)", line))

    def until(self, condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"job {self.id}: not {what} after {limit_s} s\n{self.facts()}\n{self.out()[-4000:]}")
            time.sleep(0.2)

    def until_state(self, *states: str) -> dict[str, str]:
        """Its facts once it is in one of these states, and not on its way to be requeued."""
        self.until(lambda: self.facts()["JobState"] in states, " or ".join(states))
        return self.facts()

    def until_over(self) -> tuple[str, str, str]:
        """(state, exit code:signal, restarts) at its end."""
        facts = self.until_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        return facts["JobState"], facts["ExitCode"], facts["Restarts"]

    def until_said(self, text: str) -> None:
        self.until(lambda: text in self.out(), f"saying {text!r}")

    def ask(self) -> None:
        """The signal that Slurm sends before the time limit, now."""
        self.desk.cluster.say("scancel", "--batch", "--signal=USR1", self.id)

    def out(self) -> str:
        """What the job has printed, in all its starts."""
        [path, *_] = [*self.desk.place.glob(f"*-{self.id}.out"), None]
        return path.read_text() if path else ""
