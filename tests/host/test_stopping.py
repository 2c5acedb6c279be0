"""The wish to stop, with a make-believe squeue first on PATH."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hpcsplit import cli
from hpcsplit.host.stopping import StopRequest

Squeue = Callable[..., Path]
SQUEUE = """#!/bin/sh
echo "$SLURM_TIME_FORMAT" "$@" >> "{asked}"
{does}
"""


SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Not in a Slurm job, and the handlers of this process come back."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    handlers = [(number, signal.getsignal(number)) for number in SIGNALS]
    yield
    for number, handler in handlers:
        signal.signal(number, handler)


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Squeue:
    """squeue(shell commands, job="17"): be in that job, with a squeue that does so; the file of its arguments."""

    def install(does: str, job: str = "17") -> Path:
        program, asked = tmp_path / "bin" / "squeue", tmp_path / "asked"
        program.parent.mkdir()
        program.write_text(SQUEUE.format(does=does, asked=asked))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", job)
        return asked

    return install


def answered(**settings: Any) -> StopRequest:
    """A request, once its thread has ended."""
    before = set(threading.enumerate())
    request = StopRequest(0.0, **{"stop_before_minutes": 5.0, **settings})
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    return request


def end_in(seconds: float) -> str:
    return f"echo {datetime.fromtimestamp(time.time() + seconds).isoformat(timespec='seconds')}"


def pass_time(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.monotonic() + seconds
    monkeypatch.setattr(time, "monotonic", lambda: later)


def left(request: StopRequest) -> float:
    """Seconds to the only deadline."""
    [(deadline, _)] = request.deadlines
    return deadline - time.monotonic()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)  # nohup, which may have started the tests, has SIGHUP ignored
    request = StopRequest(0.0)
    assert request.reason() is None
    os.kill(os.getpid(), number)
    assert request.reason() == f"{number.name} received"
    for again in SIGNALS:  # SIGINT so soon is the same Ctrl-C, by way of the launcher
        os.kill(os.getpid(), again)
    assert request.reason() == f"{number.name} received"


ENDING = """
import os, signal, sys
from hpcsplit.host.stopping import StopRequest
class Late:
    def __del__(self):
        print("late", flush=True)
        os.kill(os.getpid(), signal.{signal})
late = sys.modules["late"] = Late()  # goes when Python has taken its handlers down
del late
StopRequest(0.0)
sys.exit(75)
"""


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGHUP"])
def test_a_signal_while_python_ends_does_not_change_the_exit_code(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING.format(signal=name)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "late\n", "")


TWICE = """
import os, signal, time
from hpcsplit.host.stopping import StopRequest
request = StopRequest(0.0)
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGINT)
print(request.reason(), flush=True)
now = time.monotonic()
time.monotonic = lambda: now + 2
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


def test_a_second_ctrl_c_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "SIGINT received\n", "")


def test_a_hangup_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest(0.0)
    os.kill(os.getpid(), signal.SIGHUP)
    assert request.reason() is None


def test_the_time_limit_is_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    request = StopRequest(2.0)
    assert left(request) == pytest.approx(120, abs=5)
    pass_time(110, monkeypatch)
    assert request.reason() is None
    pass_time(125, monkeypatch)
    assert request.reason() == "run.time_limit reached"


def test_the_command_asks_for_the_limits_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Seen(Exception):
        pass

    def see(*minutes: float, ask: bool) -> None:
        raise Seen(*minutes)

    monkeypatch.setattr(cli, "StopRequest", see)
    (tmp_path / "c.toml").write_text("[run]\ntime_limit = 7.0\nstop_before = 3.0\n")
    with pytest.raises(Seen) as seen:
        cli._dispatch(["train", str(tmp_path / "c.toml")])
    assert seen.value.args == (7.0, 3.0)


def test_the_time_limit_of_the_run() -> None:
    request = StopRequest(0.2 / 60)
    assert request.reason() is None
    time.sleep(0.25)
    assert request.reason() == "run.time_limit reached"


def test_outside_of_slurm_nobody_is_asked(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = squeue(end_in(3600))
    monkeypatch.delenv("SLURM_JOB_ID")
    assert answered().deadlines == []
    assert not asked.exists()


def test_squeue_tells_the_end_of_the_job(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = squeue(end_in(3600))
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    request = answered()
    assert asked.read_text() == "standard --noheader --jobs 17 --format %e\n"
    assert left(request) == pytest.approx(3300, abs=10)
    assert request.reason() is None
    pass_time(3310, monkeypatch)
    assert "the Slurm job ends at " in str(request.reason())
    assert str(request.reason()).endswith(", run.stop_before = 5 min")


def test_a_task_of_an_array_asks_for_itself(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = squeue(end_in(3600))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    answered()
    assert "--jobs 17_3 " in asked.read_text()


def test_a_variable_tells_the_end_and_nobody_is_asked(squeue: Squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = squeue(end_in(60))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    assert left(answered(stop_before_minutes=10.0)) == pytest.approx(3000, abs=10)
    assert not asked.exists()


def test_a_short_job_stops_a_tenth_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    request = answered()
    assert left(request) == pytest.approx(90, abs=5)
    pass_time(95, monkeypatch)
    assert "run.stop_before = 5 min, more than the" in str(request.reason())
    assert "s that it had left; so 10 s before its end" in str(request.reason())


def test_an_end_that_is_past_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 5))
    assert answered().deadlines == []


@pytest.mark.parametrize(
    "does", ["echo N/A", "echo UNLIMITED", "echo Unknown", "true", "exit 1", "kill -9 $$", "echo 2026-11-21; echo x"]
)
def test_no_end_is_fine(does: str, squeue: Squeue, capfd: pytest.CaptureFixture[str]) -> None:
    asked = squeue(does)
    request = answered()
    assert asked.exists()
    assert request.deadlines == []
    assert request.reason() is None
    assert capfd.readouterr() == ("", "")


def test_no_squeue_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert answered().deadlines == []
    assert capfd.readouterr() == ("", "")


def test_other_ranks_and_a_margin_of_zero_ask_nobody(squeue: Squeue) -> None:
    asked = squeue(end_in(3600))
    assert answered(ask=False).deadlines == []
    assert answered(stop_before_minutes=0.0).deadlines == []
    assert not asked.exists()


def test_a_slow_squeue_delays_nothing(squeue: Squeue) -> None:
    squeue(f"sleep 1; {end_in(3600)}")
    before, start = set(threading.enumerate()), time.monotonic()
    request = StopRequest(0.0, 5.0)
    assert time.monotonic() - start < 0.5
    assert request.deadlines == []
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert left(request) == pytest.approx(3300, abs=20)


def test_asking_at_every_step_costs_nothing() -> None:
    request = StopRequest(60.0)
    request.deadlines.append((time.monotonic() + 3600, "later"))
    assert min(timeit.repeat(request.reason, number=1000, repeat=20)) / 1000 < 20e-6


# ------------------------------------------------------------------------------------------------ a start that hangs

HANGING = """
import sys, time
from hpcsplit.host import stopping
stopping.START_S = float(sys.argv[1])
from hpcsplit.commands import train
def hang(*_):
    run_dir.create(config)
    print("hangs", flush=True)
    {hang}
real = train.prepare
def prepare(config_, run_dir_, *_):
    global config, run_dir
    config, run_dir = config_, run_dir_
    hang()
train.prepare = prepare
from hpcsplit.cli import main
sys.exit(main(sys.argv[2:]))
"""


def start_that_hangs(tmp_path: Path, hang: str, start_s: float, number: signal.Signals) -> tuple[int, str, float]:
    """Exit code, standard error, and seconds from the signal to the end."""
    from tests.engine.small import write_toml
    from tests.wire.launch import ROOT

    words = ["train", str(write_toml(tmp_path / "c.toml")), "--run-dir", str(tmp_path / "run")]
    command = [sys.executable, "-c", HANGING.format(hang=hang), str(start_s), *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "hangs\n"
        began = time.monotonic()
        program.send_signal(number)
        _, said = program.communicate(timeout=60)
        return program.returncode, said, time.monotonic() - began


@pytest.mark.parametrize("hang", ["time.sleep(600)", "import os; os.mkfifo('{0}'); open('{0}')"])
def test_a_start_that_hangs_ends(tmp_path: Path, hang: str) -> None:
    code, said, seconds = start_that_hangs(tmp_path, hang.format(tmp_path / "pipe"), 0.5, signal.SIGTERM)
    assert code == 75
    assert said == "hpcsplit: SIGTERM received before the first step; start the same command again (exit 75)\n"
    assert seconds < 15
    assert not (tmp_path / "run" / "lock").exists()


def test_a_warning_of_the_batch_system_waits_for_the_first_step(tmp_path: Path) -> None:
    code, said, seconds = start_that_hangs(tmp_path, "time.sleep(3); sys.exit(3)", 0.1, signal.SIGUSR1)
    assert (code, said) == (3, "")
    assert seconds > 2.5


def test_once_it_has_started_the_steps_answer() -> None:
    request, ended = StopRequest(0.0), threading.Event()
    request.end = ended.set
    request.guard_start()
    request.started()
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.reason() == "SIGTERM received"
    assert not ended.wait(1.0)


LIBRARY = """
import ctypes
from hpcsplit.host.stopping import StopRequest
request = StopRequest(0.0)
with request.in_library():
    print("in", flush=True)
    ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock, as MPI's start does
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_library_that_lets_no_python_run(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", LIBRARY], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "in\n"
        program.send_signal(number)
        assert program.wait(20) == -number


def test_behind_the_library_signals_are_noted_again() -> None:
    request = StopRequest(0.0)
    with request.in_library():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.reason() == "SIGTERM received"
