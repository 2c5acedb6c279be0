"""The lock of a run directory: who gets it, when a dead owner's is taken over, and what comes of losing it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcsplit.errors import ConfigError, LaunchError
from hpcsplit.host.process import Process
from hpcsplit.run import lock as module
from hpcsplit.run.lock import RunLock, look
from tests.fuzz import examples
from tests.run.owners import ELSEWHERE, QUICK, dead_process, held_by_another, left_behind, process_of
from tests.wire.launch import ROOT

ROUNDS = 50
AT_ONCE_S = 1.5  # less than a limit of QUICK


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


@pytest.fixture(autouse=True)
def nothing_else_stays(tmp_path: Path) -> Iterator[None]:
    """Neither the files of a take-over nor those that ask the file system for its time."""
    yield
    assert {p.name for p in tmp_path.rglob("*lock*")} <= {"lock"}


def acquire(path: Path) -> float:
    """Own the lock and give it back; how long the first took (s)."""
    begun = time.monotonic()
    lock = RunLock.acquire(path, QUICK)
    seconds = time.monotonic() - begun
    seen = look(path)
    assert seen
    assert seen.owner == lock.owner
    lock.release()
    assert not path.exists()
    return seconds


# ------------------------------------------------------------------------------------------------ the owner lives


def test_a_live_owner_is_named(path: Path) -> None:
    with held_by_another(path) as other:
        with pytest.raises(LaunchError) as refused:
            RunLock.acquire(path, QUICK)
        assert f"another run is at work in {path.parent}: process {other.pid} on " in str(refused.value)
        assert str(refused.value).endswith("wait for it, stop it, or choose another --run-dir")
        other.kill()
        other.wait()
        assert acquire(path) < AT_ONCE_S


def test_an_owner_that_ends_meanwhile_is_waited_for(path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    left_behind(path, process_of(sleeper.pid))
    threading.Timer(0.1, sleeper.kill).start()
    begun = time.monotonic()
    RunLock.acquire(path, dataclasses.replace(QUICK, patience=60)).release()
    assert 0.1 < time.monotonic() - begun < 30


def test_a_rank_that_outlives_its_run(path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    left_behind(path, dead_process(), ELSEWHERE, process_of(sleeper.pid))
    with pytest.raises(LaunchError, match=f"process {sleeper.pid} of its run lives on here: end it"):
        RunLock.acquire(path, QUICK)
    sleeper.kill()
    assert acquire(path) < AT_ONCE_S


def test_a_rank_that_lives_here_while_the_owner_elsewhere_is_silent(
    path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    left_behind(path, ELSEWHERE, process_of(sleeper.pid), age_s=100)
    with pytest.raises(LaunchError, match=f"process {sleeper.pid} of its run lives on here: end it"):
        RunLock.acquire(path, QUICK)


def test_a_heartbeat_from_elsewhere(path: Path) -> None:
    left_behind(path, ELSEWHERE, job="c:12")
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.3):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LaunchError, match="process 4711 on n1, Slurm job 12, since"):
            RunLock.acquire(path, QUICK)
    finally:
        ended.set()
        thread.join()


# ------------------------------------------------------------------------------------------------ the owner is dead


def test_its_process_is_gone(path: Path) -> None:
    left_behind(path, dead_process(), dead_process())
    assert acquire(path) < AT_ONCE_S


def test_its_process_is_a_zombie(path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    left_behind(path, process_of(sleeper.pid))
    os.kill(sleeper.pid, 9)
    assert acquire(path) < AT_ONCE_S


def test_its_process_id_is_used_again(path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    now = process_of(sleeper.pid)
    left_behind(path, Process(now.machine, now.pid, now.started - 1))
    assert acquire(path) < AT_ONCE_S


def test_this_process_knows_that_it_is_not_the_owner(path: Path) -> None:
    left_behind(path, Process.this())
    assert acquire(path) < AT_ONCE_S


def test_silence_from_elsewhere(path: Path) -> None:
    left_behind(path, ELSEWHERE, age_s=2.1)
    assert acquire(path) < AT_ONCE_S
    left_behind(path, ELSEWHERE)
    said: list[str] = []
    begun = time.monotonic()
    RunLock.acquire(path, QUICK, said.append).release()
    assert time.monotonic() - begun > 1.9
    assert len(said) == 1
    assert f"{path} is that of process 4711 on n1" in said[0]


def test_a_heartbeat_in_the_future_does_not_hold_for_ever(path: Path) -> None:
    """As a node whose clock is wrong may leave it on a file system that takes its clients' times."""
    left_behind(path, ELSEWHERE, age_s=-3600)
    assert 1.9 < acquire(path) < 20


@pytest.mark.parametrize("offset_s", [-3600.0, 3600.0])
def test_the_clock_of_this_host_does_not_count(path: Path, monkeypatch: pytest.MonkeyPatch, offset_s: float) -> None:
    """The file system's does: here both are one, so the host's is set wrong where the program could read it."""
    left_behind(path, ELSEWHERE)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + offset_s)
    assert acquire(path) > 1.9


@pytest.mark.parametrize(
    ("job", "restart", "cluster", "at_once"),
    [("12", "2", "c", True), ("12", "1", "c", False), ("13", "2", "c", False), ("12", "2", "d", False)],
)
def test_a_requeued_job(
    path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restart: str, cluster: str, at_once: bool
) -> None:
    left_behind(path, ELSEWHERE, job="c:12", restart=1)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", cluster)
    assert (acquire(path) < AT_ONCE_S) == at_once


def test_requeued_on_the_same_machine_while_the_first_still_lives(
    path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    left_behind(path, process_of(sleeper.pid), job=":12", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(LaunchError):
        RunLock.acquire(path, QUICK)


def test_its_owner_died_before_it_wrote(path: Path) -> None:
    path.touch()
    assert acquire(path) > 0.4
    path.touch()
    os.utime(path, (0, 0))
    assert acquire(path) < AT_ONCE_S


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.recursive(st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_a_damaged_lock(path: Path, content: object) -> None:
    path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    os.utime(path, (0, 0))
    acquire(path)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit(path: Path, data: st.DataObject) -> None:
    left_behind(path, Process.this(), ELSEWHERE, token="0" * 16)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    os.utime(path, (0, 0))
    acquire(path)


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_it_is_no_file(path: Path, kind: str) -> None:
    target = path.with_name("target")
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    if kind == "link":
        target.write_text("mine")
    with pytest.raises(ConfigError, match=f"{path} is a (link to {target}, .*|folder, no regular file); remove it"):
        RunLock.acquire(path, QUICK)
    assert kind != "link" or target.read_text() == "mine"


# ------------------------------------------------------------------------------------------------ several starters


def test_of_two_starters_one_wins(tmp_path: Path) -> None:
    dead = dead_process()
    for nth in range(ROUNDS):
        left_behind(tmp_path / str(nth) / "lock", dead if nth % 2 else ELSEWHERE, age_s=100)
    names = ("a", "b")
    racers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.run.racer", str(tmp_path), name, rival, str(ROUNDS)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, rival in (names, names[::-1])
    ]
    results = [racer.communicate(timeout=200)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert [sorted(pair) for pair in zip(*results, strict=True)] == [["lost", "won"]] * ROUNDS


def test_a_starter_that_is_late_does_not_remove_the_lock_of_the_winner(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has found a dead owner, and then waits while another starter takes over."""
    left_behind(path, dead_process())
    found = module._await_its_end
    with ExitStack() as stack:
        winners: list[subprocess.Popen[str]] = []

        def meanwhile(*args: Any) -> None:
            found(*args)
            if not winners:
                winners.append(stack.enter_context(held_by_another(path)))

        monkeypatch.setattr(module, "_await_its_end", meanwhile)
        with pytest.raises(LaunchError, match="another run is at work") as refused:
            RunLock.acquire(path, QUICK)
        assert f"process {winners[0].pid} on" in str(refused.value)
        seen = look(path)
        assert seen
        assert seen.owner
        assert seen.owner.process.pid == winners[0].pid


def test_a_starter_that_died_while_it_took_over(path: Path) -> None:
    owner = left_behind(path, dead_process())
    claim = path.with_name(f"lock.{owner.token}")
    heir = left_behind(claim, dead_process())
    left_behind(path.with_name(f"{claim.name}.{heir.token}"), dead_process())
    assert acquire(path) < AT_ONCE_S


# ------------------------------------------------------------------------------------------------ a lock that is owned


def test_the_heart_beats_and_the_ranks_are_named(path: Path) -> None:
    lock = RunLock.acquire(path, QUICK)
    assert path.stat().st_mode & 0o077 == 0
    lock.add([ELSEWHERE, Process.this()])
    before = look(path)
    time.sleep(3 * QUICK.beat)
    after = look(path)
    assert before
    assert after
    assert after.modified > before.modified
    assert after.owner == lock.owner
    assert after.others == (ELSEWHERE, Process.this())
    lock.release()
    assert not path.exists()


def lose(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "damaged":
        path.write_text("{")
    else:
        left_behind(path, ELSEWHERE)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [("gone", "is gone"), ("damaged", "is damaged"), ("taken", "belongs to process 4711 on n1, since .*")],
)
def test_a_lock_that_was_lost(path: Path, monkeypatch: pytest.MonkeyPatch, how: str, sentence: str) -> None:
    raised: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_value))
    lock = RunLock.acquire(path, QUICK)
    lose(path, how)
    with pytest.raises(LaunchError, match=f"the lock {path} {sentence}, so this run has been taken for dead"):
        lock.check()
    lock._thread.join(10)
    [error] = raised
    assert isinstance(error, LaunchError)
    left = look(path)
    lock.release()
    assert look(path) == left


@pytest.mark.parametrize(
    ("token", "read"),
    [("a1", True), ("a" * 63, True), ("a" * 64, False), ("", False), ("../x", False), ("a_b", False), ("a\n", False)],
)
def test_a_token_can_be_a_part_of_a_file_name(tmp_path: Path, token: str, read: bool) -> None:
    path = tmp_path / "lock"
    left_behind(path, dead_process(), token=token)
    found = look(path)
    assert found
    assert bool(found.owner) == read
