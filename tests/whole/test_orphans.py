"""A rank whose launcher has been killed trains for nobody: it stops with a checkpoint, or ends."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcsplit.run import watchdog
from hpcsplit.run.watchdog import Watchdog
from tests.engine.small import train_here, weights, write_toml
from tests.wire.launch import MPIRUN, ROOT, needs_mpi


def wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@needs_mpi
@pytest.mark.mpi
def test_a_dead_proxy(tmp_path: Path) -> None:
    toml, run = write_toml(tmp_path / "c.toml", 2, schedule__epochs=2000, checkpoint__every_epochs=0), tmp_path / "run"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI_", "SLURM_"))}
    command = [str(MPIRUN), "-n", "2", sys.executable, "-m", "hpcsplit", "train", str(toml), "--run-dir", str(run)]
    with subprocess.Popen(
        command, cwd=ROOT, env=clean | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as mpirun:
        wait_for(lambda: (run / "records.jsonl").exists() and len(weights(run)) > 1)
        [proxy] = children(mpirun.pid)
        ranks = children(proxy)
        assert len(ranks) == 2
        os.kill(proxy, signal.SIGKILL)
        wait_for(lambda: not any(map(runs, ranks)), 20)
    log = (run / "log" / "rank-000.log").read_text()
    assert re.search(rf"stop: \S+ \(process {proxy}\), which has started this rank, is gone$", log, re.MULTILINE)
    assert len(list((run / "checkpoints").glob("epoch-*/SHA256SUMS"))) >= 1
    assert not (run / "lock").exists()
    done = len(weights(run))
    assert done < 2000
    assert train_here(toml, run, "--run.time_limit", 1e-6) == 75  # goes on
    assert len(weights(run)) in (done, done + 1)


WATCHED = """
import sys, time
from hpcsplit.host.launchers import LauncherWatch
launcher = LauncherWatch()
print("here", flush=True)
while not launcher.died():
    time.sleep(0.05)
print(launcher.died(), flush=True)
"""
LINK = """
import subprocess, sys
name = sys.argv[1].encode()
import ctypes
ctypes.CDLL(None).prctl(15, name)  # PR_SET_NAME
sys.exit(subprocess.call(sys.argv[2:]))
"""


@pytest.mark.parametrize("victim", ["slurmstepd", "wrapper"])
def test_who_is_gone(victim: str) -> None:
    """slurmstepd, a script of the user's, a rank."""
    rank = [sys.executable, "-c", WATCHED]
    chain = [sys.executable, "-c", LINK, "slurmstepd", sys.executable, "-c", LINK, "wrapper", *rank]
    with subprocess.Popen(chain, cwd=ROOT, stdout=subprocess.PIPE, text=True) as stepd:
        assert stepd.stdout is not None
        assert stepd.stdout.readline() == "here\n"
        [wrapper] = children(stepd.pid)
        killed = {"slurmstepd": stepd.pid, "wrapper": wrapper}[victim]
        os.kill(killed, signal.SIGKILL)
        said = stepd.stdout.readline()
    assert said == f"{victim} (process {killed}), which has started this rank, is gone\n"


def test_processes_above_the_launcher_may_end() -> None:
    """As the shell that nohup mpirun was typed into."""
    quiet = WATCHED.replace("while not launcher.died():", "for _ in range(40):")
    chain = [sys.executable, "-c", LINK, "shell", sys.executable, "-c", LINK, "mpirun", sys.executable, "-c", quiet]
    with subprocess.Popen(chain, cwd=ROOT, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "here\n"
        shell.kill()
        assert shell.stdout.readline() == "\n"


@pytest.mark.parametrize("limit_s", [0.0, 60.0])
def test_an_orphan_that_waits_for_ranks_that_are_gone(
    limit_s: float, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "ORPHAN_S", 0.1)
    monkeypatch.setattr(watchdog, "GRACE_S", 0.1)
    ended: list[float] = []
    began = time.monotonic()
    dog = Watchdog(
        limit_s,
        beats=lambda: 0,
        where=lambda: "train epoch 2",
        waits=lambda: "'x' number 1 from stage 1",
        orphaned=lambda: "hydra_pmi_proxy (process 7), which has started this rank, is gone",
        rank=0,
        host="n1",
        end=lambda: ended.append(time.monotonic() - began),
    )
    with dog.watching():
        wait_for(lambda: ended, 20)
    faulthandler.cancel_dump_traceback_later()
    assert ended[0] < 15
    assert "no progress for " in (said := capfd.readouterr().err)
    assert "(hydra_pmi_proxy (process 7), which has started this rank, is gone); it waits for 'x'" in said
