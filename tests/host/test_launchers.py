"""A launcher of another MPI starts N processes that each believe to be alone; the environment gives it away."""

from __future__ import annotations

import json

import pytest

from hpcsplit.errors import LaunchError
from hpcsplit.host.launchers import check_stages, check_world, claimed_size
from tests.wire.launch import python

VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES, "PMIX_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(variable, raising=False)


def test_no_launcher_is_one_process() -> None:
    assert claimed_size() == (1, "")
    check_world(1, "MPICH")


@pytest.mark.parametrize("variable", VARIABLES)
def test_alone_where_two_were_started(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(LaunchError, match=f"{variable} says that 2 processes were started, but MPI .* sees only"):
        check_world(1, "MPICH")
    check_world(2, "MPICH")


def test_a_value_that_is_no_number_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2(x3)")
    assert claimed_size() == (1, "")


def test_stages_and_ranks_must_agree() -> None:
    with pytest.raises(LaunchError, match=r"2 ranks were started, run\.stages asks for 3: start with mpirun -n 3"):
        check_stages(2, 3, "run.stages")
    with pytest.raises(LaunchError, match="1 rank was started"):
        check_stages(1, 3, "run.stages")
    check_stages(3, 3, "run.stages")
    check_stages(3, 0, "run.stages")


# ------------------------------------------------------------------------------------------------ one that is gone

FAMILY = """
import os, sys, time
from pathlib import Path
from hpcsplit.host.launchers import LauncherWatch
names, killed, old = sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3] == "old"
pids, reading, writing = [], *os.pipe()
for number, name in enumerate(names):
    Path("/proc/self/comm").write_text(name)
    pids.append(os.getpid())
    if os.fork():
        if number == killed:
            os.read(reading, 1)
            os._exit(0)
        os.wait()
        os._exit(0)
if old:
    del os.pidfd_open
launcher = LauncherWatch()
time.sleep(0.2)
assert launcher.died() == ""
os.write(writing, b"x")
until = time.monotonic() + float(sys.argv[4])
while not launcher.died() and time.monotonic() < until:
    time.sleep(0.05)
print(pids, launcher.died(), sep="|")
"""


@pytest.mark.parametrize(
    ("family", "killed", "kernel", "who"),
    [
        ("hydra_pmi_proxy", 0, "new", "hydra_pmi_proxy (process {0}), which"),
        ("hydra_pmi_proxy", 0, "old", "process {0}, which"),
        ("mpirun,bash,bash", 0, "new", "mpirun (process {0}), which"),
        ("mpirun,bash,bash", 1, "new", "bash (process {1}), which"),
        ("mpirun,bash,bash", 2, "old", "process {2}, which"),
        ("bash,a shell) 1 2", 1, "new", "process {1}, which"),
        ("bash,bash,mpirun,bash", 1, "new", None),
    ],
)
def test_a_launcher_that_is_gone_is_named(family: str, killed: int, kernel: str, who: str | None) -> None:
    """A rank below these processes, of which one ends; who stands above the launcher does not matter."""
    ended = python("-c", FAMILY, family, killed, kernel, 15 if who else 2, limit_s=40)
    pids, said = ended.out.strip().split("|")
    wanted = "" if who is None else f"{who} has started this rank, is gone".format(*json.loads(pids))
    assert said == wanted
