"""The soak notices what grows and what is left behind; a short one of the program itself is good."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wire.launch import needs_mpi
from tools.campaigns.soak import complaints, main, slope, table, trend, trends
from tools.campaigns.soaking import Disturbance, Sample, Started, files, ranks, sample, shared_files
from tools.program import MARK, survivors

KIB = 1024


def soaked(change: Callable[[int, Started], None] = lambda n, s: None) -> list[Started]:
    """Twenty starts of 40 epochs, one a minute, with the noise of an allocator; every other one finishes a run."""
    starts = []
    for n in range(20):
        kind = "nothing" if n % 2 else "KILL"
        noise = (n * 37 % 11) * 100
        epochs = [{rank: Sample(450 * KIB + noise, 5 * KIB, 36, 4) for rank in (0, 1)} for _ in range(40)]
        start = Started(float(n), Disturbance(kind, 1.0, 0), ("copy", "keep")[n // 2 % 2], 10.0, 0, epochs)
        start.files, start.size_bytes = 19, 7_000_000 if start.aux == "copy" else 9_000_000
        change(n, start)
        starts.append(start)
    return starts


def verdict(starts: list[Started]) -> list[str]:
    return complaints(starts, trends(starts, starts[1::2]))


def test_noise_is_no_growth() -> None:
    assert verdict(soaked()) == []


def test_memory_that_grows_from_start_to_start() -> None:
    def more(n: int, start: Started) -> None:
        start.epochs = [{0: e[0], 1: Sample(e[1].anonymous + n * KIB, 5 * KIB, 36, 4)} for e in start.epochs]

    assert any(said.startswith("memory of a rank has grown by") for said in verdict(soaked(more)))


def test_memory_that_grows_from_epoch_to_epoch() -> None:
    def more(n: int, start: Started) -> None:
        start.epochs = [{0: e[0], 1: Sample(450 * KIB + k * 100, 5 * KIB, 36, 4)} for k, e in enumerate(start.epochs)]

    assert verdict(soaked(more)) == ["a rank grows by 100 KiB in an epoch, 64 are let through"]


@pytest.mark.parametrize(
    ("field", "name"), [("descriptors", "descriptors"), ("threads", "threads"), ("shared", "shared memory")]
)
def test_what_else_a_rank_may_gather(field: str, name: str) -> None:
    def more(n: int, start: Started) -> None:
        for epoch in start.epochs:
            step = 300 if field == "shared" else 1
            epoch[0] = Sample(**{**vars(epoch[0]), field: getattr(epoch[0], field) + n * step})

    assert any(said.startswith(f"{name} of a rank has grown by") for said in verdict(soaked(more)))


def test_a_run_directory_that_grows() -> None:
    def more(n: int, start: Started) -> None:
        start.files += n
        start.size_bytes += n * 10 * KIB

    said = verdict(soaked(more))
    assert [line.split(" has ")[0] for line in said] == ["files of a run", "size of a run"]


def test_what_is_left_behind() -> None:
    def left(n: int, start: Started) -> None:
        start.left_processes, start.left_temporary = n % 2, ["x"]
        start.left_shared = ["/dev/shm/a"] if n < 3 else []

    said = verdict(soaked(left))
    assert "10 processes were left behind by 10 of 20 starts" in said
    assert "3 files in /dev/shm were left behind by 3 of 20 starts" in said
    assert "20 temporary files were left behind by 20 of 20 starts" in said


def test_one_kill_while_mpi_comes_up_is_forgiven() -> None:
    def left(n: int, start: Started) -> None:
        start.left_shared = ["/dev/shm/a"] if n == 4 else []

    assert verdict(soaked(left)) == []


def test_a_start_that_hangs_is_named() -> None:
    def hang(n: int, start: Started) -> None:
        start.complaint = "KILL after 3.0 s: still there 60 s later" if n == 7 else ""

    assert verdict(soaked(hang)) == ["KILL after 3.0 s: still there 60 s later"]


def test_a_few_points_make_no_trend() -> None:
    assert not trend("x", "", [(float(n), 100.0 * n) for n in range(7)], 1.0, "").grows
    assert trend("x", "", [(float(n), 100.0 * n) for n in range(8)], 1.0, "").grows
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 900.0)]) == pytest.approx(2.0, abs=200)
    assert slope([]) == 0.0


def test_a_line_for_every_window() -> None:
    starts = soaked()
    lines = table(starts, starts[1::2], 5.0).splitlines()
    assert len(lines) == 5
    assert lines[1].split()[:7] == ["0", "-", "5", "5", "3", "0", "2"]


# ------------------------------------------------------------------------------------------------ the kernel's view


def test_marked_processes_are_found_until_they_end() -> None:
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    environment = {**os.environ, MARK: "test-of-the-soak", "PMI_RANK": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        assert survivors("test-of-the-soak", 0.0) == [child.pid]
        assert ranks("test-of-the-soak") == {1: child.pid}
        assert survivors("test-of-the", 0.0) == []
        seen = sample(child.pid)
        assert seen is not None
        assert seen.anonymous > 1000
        assert (seen.threads, seen.descriptors >= 3) == (1, True)
        child.kill()
    assert survivors("test-of-the-soak", 0.0) == []
    assert sample(child.pid) is None


def test_shared_memory_in_use_has_a_name_until_it_is_removed() -> None:
    path = Path(f"/dev/shm/hpcsplit-soak-{os.getpid()}")
    if not path.parent.is_dir():
        pytest.skip("no /dev/shm here")
    try:
        with path.open("w+b") as file:
            file.truncate(4096)
            with mmap.mmap(file.fileno(), 4096):
                assert path in shared_files([os.getpid()])
    finally:
        path.unlink()
    assert path not in shared_files([os.getpid()])


def test_files_are_counted_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert files(tmp_path) == (2, 6)


# ------------------------------------------------------------------------------------------------ the program


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--minutes", "x"], ["--epochs", "0"], ["--what"]])
def test_misuse_is_exit_64(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 64
    assert "tools/soak" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.mpi
@needs_mpi
def test_a_quarter_of_a_minute_of_it_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--minutes", "0.25", "--epochs", "4", "--seed", "1", "--out", str(tmp_path / "soak")])
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert code == 0, out
    assert found["good"]
    assert found["runs"] >= 2
    assert any(start["disturbance"]["kind"] != "nothing" for start in found["starts"])
    assert "verdict: nothing grows" in out
