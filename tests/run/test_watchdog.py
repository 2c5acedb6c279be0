"""When silence is a stall, and what is said then."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hpcsplit.host.proc import moved_bytes
from hpcsplit.run import watchdog
from hpcsplit.run.watchdog import Heartbeat, Heartbeats, Silence, Watchdog, heartbeat_of

MIB = 1 << 20
BEAT = Heartbeat(rank=1, pid=7, host="here", moves=3, at=1000.0, where="train epoch 2", waits="")


def looked(*looks: tuple[float, int, int], waits: bool = False, tick_s: float = 1.0) -> Silence:
    silence = Silence(tick_s)
    for now, beats, moved in looks:
        silence.look(now, beats, moved, waits=waits)
    return silence


def test_silence_grows_until_something_moves() -> None:
    still = [(t, 5, 0) for t in (0.0, 1.0, 2.0, 3.0)]
    assert looked(*still).seconds == 3.0
    moved = looked(*still, (4.0, 6, 0))
    assert (moved.seconds, moved.moves) == (0.0, 1)


def test_time_in_which_the_process_was_stopped_is_no_silence() -> None:
    assert looked((0.0, 5, 0), (1.0, 5, 0), (4000.0, 5, 0)).seconds == 3.0


def test_bytes_are_progress_of_a_rank_that_waits_for_nobody() -> None:
    looks = [(0.0, 5, 0), (1.0, 5, MIB)]
    assert looked(*looks).seconds == 0.0
    assert looked(*looks, waits=True).seconds == 1.0


def test_small_amounts_add_up() -> None:
    assert looked((0.0, 5, 0), (1.0, 5, MIB // 2), (2.0, 5, MIB)).seconds == 0.0
    assert looked((0.0, 5, 0), (1.0, 5, 10), (2.0, 5, 20)).seconds == 2.0


def test_progress_of_another_rank_counts_for_one_that_waits() -> None:
    silence = looked(*[(float(t), 5, 0) for t in range(21)], waits=True)
    silence.hear(1100.0, [BEAT])
    assert silence.seconds == 20.0  # it has been silent for longer
    silence.hear(1110.0, [replace(BEAT, moves=4, at=1108.0)])
    assert silence.seconds == 2.0


def test_a_heartbeat_that_stays_the_same_is_no_progress() -> None:
    silence = looked(*[(float(t), 5, 0) for t in range(21)], waits=True)
    silence.hear(1100.0, [BEAT])
    silence.hear(1000.0, [BEAT])
    assert silence.seconds == 20.0


def test_a_clock_that_is_ahead_is_not_taken_literally() -> None:
    silence = looked((0.0, 5, 0), (1.0, 5, 0), waits=True)
    silence.hear(900.0, [BEAT])
    assert silence.seconds == 0.0


def test_what_this_process_writes_is_counted(tmp_path: Path) -> None:
    before = moved_bytes()
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    assert moved_bytes() - before >= 3 * MIB


class Ended:
    """A watchdog with a short limit, and what it did."""

    def __init__(self, tmp_path: Path, waits: Callable[[], str] = lambda: "", limit_s: float = 0.4) -> None:
        self.event, self.at, self.beats = threading.Event(), 0.0, 0
        self.dog = Watchdog(
            limit_s,
            beats=lambda: self.beats,
            where=lambda: "epoch 1",
            waits=waits,
            rank=0,
            host="here",
            end=self.end,
        )
        self.dog.post_on(Heartbeats([tmp_path / f"rank-{rank:03d}.log" for rank in range(2)], 0))

    def end(self) -> None:
        faulthandler.cancel_dump_traceback_later()  # the real one does not come back
        self.at = time.monotonic()
        self.dog._closed.set()
        self.event.set()


def test_a_stall_is_reported_with_all_stacks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = Ended(tmp_path)
    with ended.dog.watching():
        assert ended.event.wait(30)
    said = capfd.readouterr().err
    assert "hpcsplit: rank 0 (stage 0) on here, epoch 1: no progress for 0 s (run.stall_limit = " in said
    assert "it waits for no other rank, it is in code outside this program" in said
    log = (tmp_path / "rank-000.log").read_text()
    assert "thread MainThread:" in log
    assert "thread watchdog:" in log


def test_a_rank_that_waits_reports_later_and_names_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "GRACE_S", 1.0)
    Heartbeats([tmp_path / "rank-000.log", tmp_path / "rank-001.log"], 1).tell(replace(BEAT, at=time.time()))
    ended = Ended(tmp_path, lambda: "'x' number 3 from stage 1 since 1 s")
    began = time.monotonic()
    with ended.dog.watching():
        assert ended.event.wait(30)
    assert ended.at - began > 1.3
    said = capfd.readouterr().err
    assert "it waits for 'x' number 3 from stage 1 since 1 s" in said
    assert "ago: rank 1 (pid 7 on here): train epoch 2; waits for no other rank" in said


def test_progress_keeps_it_quiet(tmp_path: Path) -> None:
    ended = Ended(tmp_path, limit_s=2.0)
    with ended.dog.watching():
        for _ in range(60):
            ended.beats += 1
            time.sleep(0.05)
    assert not ended.event.is_set()


def test_the_heartbeat_is_there_while_the_run_is(tmp_path: Path) -> None:
    ended = Ended(tmp_path, limit_s=5.0)
    first = heartbeat_of(tmp_path / "rank-000.log")
    assert first
    assert (first.moves, first.where) == (0, "epoch 1")
    with ended.dog.watching():
        for _ in range(100):
            ended.beats += 1
            if (beat := heartbeat_of(tmp_path / "rank-000.log")) and beat.moves:
                break
            time.sleep(0.1)
        assert beat
        assert beat.moves > 0
    assert heartbeat_of(tmp_path / "rank-000.log") is None


def test_a_limit_of_0_never_ends_a_run(tmp_path: Path) -> None:
    ended = Ended(tmp_path, limit_s=0.0)
    with ended.dog.watching():
        assert not ended.event.wait(3 * ended.dog._tick_s)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rank": 1}'])
def test_a_broken_heartbeat_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "rank-000.sign").write_text(text)
    assert heartbeat_of(tmp_path / "rank-000.log") is None


HANGS = """
import sys, time
from hpcsplit.run import watchdog
watchdog.GRACE_S = 0.0
print(watchdog.in_time(60.0, "nobody", lambda: 7), watchdog.in_time(0.0, "nobody", lambda: 8), flush=True)
watchdog.in_time(0.2, "rank 3 (stage 3) on here, start of MPI", lambda: time.sleep(60))
"""


def test_a_start_of_mpi_that_hangs_says_whose_it_is() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stdout) == (1, "7 8\n")
    assert ended.stderr.count("rank 3 (stage 3) on here, start of MPI") == 1
    assert "nobody" not in ended.stderr
