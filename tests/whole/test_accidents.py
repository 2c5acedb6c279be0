"""Whatever happens to one rank ends all of them soon, and the same command then goes on as if nothing had happened."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engine.small import train_here, weights, write_toml
from tests.whole.conftest import METHODS, Uninterrupted
from tests.wire.launch import Ended, needs_mpi, python

pytestmark = [needs_mpi, pytest.mark.mpi, pytest.mark.slow]

STALL_S = 9.0  # more than the ranks of a start may come apart on a busy machine
LIMIT_S = 5  # from the accident to the end of mpirun
HANGS = ("sleep:1", "stop:1")


def start(toml: Path, run_dir: Path, rank: int, moment: str) -> tuple[Ended, float]:
    """Run with an accident; also the seconds between it and the end of mpirun."""
    words = ["-m", "tests.whole.victim", rank, moment, "train", toml, "--run-dir", run_dir]
    ended = python(*words, ranks=2)
    died = re.search(r"dying at ([\d.]+)", ended.err)
    return ended, time.time() - float(died[1]) if died else 0.0


def killed(toml: Path, run_dir: Path, rank: int, moment: str) -> None:
    ended, seconds = start(toml, run_dir, rank, moment)
    assert "dying at" in ended.err, f"{moment} did not come\n{ended.out}\n{ended.err}"
    assert ended.code != 0
    assert seconds < LIMIT_S


def test_killed_again_and_again_with_rows_kept_in_the_store(tmp_path: Path, uninterrupted: Uninterrupted) -> None:
    toml, run_dir = write_toml(tmp_path / "c.toml", 2, **METHODS["penalty"], checkpoint__aux="keep"), tmp_path / "run"
    killed(toml, run_dir, 1, "import")
    killed(toml, run_dir, 0, "job")
    killed(toml, run_dir, 1, "serial:0")
    killed(toml, run_dir, 0, "parallel:2")
    assert [epoch for epoch, _ in weights(run_dir)] == [0, 1]
    killed(toml, run_dir, 1, "write:2")
    assert train_here(toml, run_dir) == 0
    assert weights(run_dir) == uninterrupted("penalty", 2)
    assert not list((run_dir / "checkpoints").glob("*.tmp"))


def test_killed_and_asked_to_stop_with_rows_copied_into_checkpoints(
    tmp_path: Path, uninterrupted: Uninterrupted
) -> None:
    toml, run_dir = write_toml(tmp_path / "c.toml", 2, **METHODS["al"]), tmp_path / "run"
    killed(toml, run_dir, 0, "serial:0")
    killed(toml, run_dir, 1, "parallel:1")
    killed(toml, run_dir, 0, "record:1")
    ended, _ = start(toml, run_dir, 0, "early")
    assert ended.code == 75, ended.err
    assert [epoch for epoch, _ in weights(run_dir)] == [0]
    assert (run_dir / "checkpoints" / "epoch-0001-step-000003").is_dir()  # when all ranks know of the signal
    ended, _ = start(toml, run_dir, 1, "usr1:2")
    assert ended.code == 75
    assert "stopped: SIGUSR1 received; checkpointed" in ended.out
    newest = max(folder.name for folder in (run_dir / "checkpoints").glob("epoch-*"))
    assert newest in ("epoch-0002-step-000003", "epoch-0003-step-000000")  # as fast as mpirun passes the signal on
    killed(toml, run_dir, 0, "finish:3")
    assert train_here(toml, run_dir) == 0
    assert weights(run_dir) == uninterrupted("al", 2)


@pytest.mark.parametrize("moment", ["raise:1", "thread:1"])
def test_an_exception_on_one_rank_ends_all(tmp_path: Path, moment: str) -> None:
    toml = write_toml(tmp_path / "c.toml", 2)
    ended, seconds = start(toml, tmp_path / "run", 1, moment)
    assert ended.code == 70
    assert seconds < LIMIT_S
    assert re.search(
        r"^hpcsplit: rank 1 \(stage 1\) on \S+, train epoch 2, parallel, step 2 of 4: ZeroDivisionError: an accident$",
        ended.err,
        re.MULTILINE,
    )
    assert "Traceback" in ended.err


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Ended, float]]:
    """By moment: the folder, and the end, of a run in which rank 1 hangs then; they wait for the limit together."""
    places = {moment: tmp_path_factory.mktemp("hung") for moment in HANGS}

    def hang(moment: str) -> tuple[Path, Ended, float]:
        toml = write_toml(places[moment] / "c.toml", 2, run__stall_limit=STALL_S / 60)
        return places[moment], *start(toml, places[moment] / "run", 1, moment)

    with ThreadPoolExecutor() as together:
        return dict(zip(HANGS, together.map(hang, HANGS), strict=True))


@pytest.mark.parametrize("moment", HANGS)
def test_a_rank_that_hangs_ends_all_when_the_limit_is_over(
    hung: dict[str, tuple[Path, Ended, float]], moment: str
) -> None:
    """A rank that hangs reports itself; of one that is stopped the other says what it waits for."""
    place, ended, seconds = hung[moment]
    assert ended.code == 69
    assert STALL_S <= seconds < STALL_S + LIMIT_S
    rank = 1 if moment == "sleep:1" else 0
    report = re.search(
        rf"^hpcsplit: rank {rank} \(stage {rank}\) on \S+, train epoch 2, parallel, step \d of 4: no progress for "
        r"\d+ s \(run.stall_limit = 0.15 minutes\); it (.*)$",
        ended.err,
        re.MULTILINE,
    )
    assert report, ended.err
    doing = {
        1: r"waits for no other rank, it is in hpcsplit/engine/epochs.py, line \d+",
        0: r"waits for '\w+' number \d from stage 1 since \d+ s",
    }
    assert re.fullmatch(doing[rank], report[1])
    assert re.search(r"^hpcsplit: last heard \d+ s ago: rank \d \(pid \d+ on \S+\): ", ended.err, re.MULTILINE)
    assert "thread MainThread:" in (place / "run" / "log" / f"rank-{rank:03d}.log").read_text()
    assert train_here(place / "c.toml", place / "run") == 0
    assert (
        "the start before this one ended unexpectedly; last seen: rank 0 (pid "
        in (place / "run" / "log" / "rank-000.log").read_text()
    )


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, optim__lr=1e30)
    ended, _ = start(toml, tmp_path / "run", 0, "nothing")
    assert ended.code == 70
    assert re.search(
        r"rank (\d) \(stage \1\).*: \w+ = (nan|inf) in epoch 1 \(serial\), step \d, stage \1: training has diverged",
        ended.err,
    )
    assert "Traceback" not in ended.err
