"""The whole command, as a person starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.wire.launch import ROOT, Ended, needs_mpi, python

LIMIT_S = 120  # on a busy machine; alone it takes some seconds
pytestmark = [needs_mpi, pytest.mark.mpi]


def doctor(*words: object, ranks: int = 0, **variables: Any) -> tuple[Ended, dict[str, Any]]:
    """`doctor --json`, and what it found."""
    ended = python(
        "-m",
        "tests.doctor.patient",
        0,
        "nothing",
        "doctor",
        "--json",
        *words,
        ranks=ranks,
        limit_s=LIMIT_S,
        **variables,
    )
    return ended, json.loads(ended.out)


def topics(answer: dict[str, Any], topic: str) -> list[dict[str, Any]]:
    return [finding for finding in answer["findings"] if finding["topic"] == topic]


def broken(answer: dict[str, Any]) -> list[str]:
    return [finding["found"] for finding in answer["findings"] if finding["status"] == "broken"]


def check(answer: dict[str, Any], size: int, launcher: str) -> None:
    """Everything that has to be said about `size` ranks on this machine."""
    [launch], [host] = topics(answer, "launch"), topics(answer, "ranks")
    assert (launch["data"]["world_size"], launch["data"]["launcher"]) == (size, launcher)
    assert [rank["rank"] for rank in host["data"]["ranks"]] == list(range(size))
    edges = [edge for found in topics(answer, "messages") for edge in found["data"]["edges"]]
    assert [edge["ranks"] for edge in edges] == [[rank, rank + 1] for rank in range(size - 1)]
    assert all(0 < edge["latency_s"] < 5 and 1e5 < edge["bandwidth"] < 1e12 for edge in edges)
    present = {finding["topic"] for finding in answer["findings"]}
    assert {"MPI", "start-up", "GPU messages", "folder", "scratch", "HDF5", "packages"} <= present
    assert topics(answer, "GPU messages")[0]["found"].startswith("staged")
    assert topics(answer, "HDF5")[0]["data"]["hdf5"]


@pytest.mark.parametrize(
    "ranks", [pytest.param(1, marks=pytest.mark.weekly), pytest.param(4, marks=pytest.mark.weekly), 3]
)
def test_every_number_of_ranks(ranks: int) -> None:
    ended, answer = doctor(ranks=ranks)
    assert ended.code == 0, (ended, broken(answer))
    assert answer["status"] in ("good", "slow")
    check(answer, ranks, "mpirun of MPICH")


def test_one_process_and_an_absent_folder(tmp_path: Path) -> None:
    ended, answer = doctor("--scratch", tmp_path / "absent")
    assert ended.code == 70
    assert broken(answer) == [f"{tmp_path / 'absent'} (asked for) does not exist"]
    check(answer, 1, "")


def test_the_table_is_printed_once_and_by_the_real_program() -> None:
    ended = python("-m", "hpcsplit", "doctor", ranks=2, limit_s=LIMIT_S)
    assert ended.code == 0, ended
    for once in (" launch  ", " MPI  ", " HDF5  ", " packages  ", "2 ranks, started by mpirun of MPICH", "Nothing is"):
        assert ended.out.count(once) == 1, ended.out
    assert "\x1b" not in ended.out
    assert "\r" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 120


def test_several_processes_that_do_not_know_of_each_other() -> None:
    ended, answer = doctor(PMI_SIZE="2")
    assert ended.code == 70
    [launch] = topics(answer, "launch")
    assert launch["status"] == "broken"
    assert "PMI_SIZE says that 2 processes were started" in launch["advice"]


def test_the_second_of_them_leaves_the_word_to_the_first() -> None:
    ended = python("-m", "tests.doctor.patient", 9, "nothing", "doctor", limit_s=LIMIT_S, PMI_SIZE="2", PMI_RANK="1")
    assert (ended.code, ended.out, ended.err) == (70, "", "")


def test_without_mpi_the_rest_is_still_examined() -> None:
    ended = python("-m", "tests.doctor.patient", 0, "nompi", "doctor", "--json", limit_s=LIMIT_S)
    answer = json.loads(ended.out)
    assert ended.code == 70
    assert topics(answer, "MPI")[0]["status"] == "broken"
    assert "MPI4PY_LIBMPI" in topics(answer, "MPI")[0]["advice"]
    assert topics(answer, "scratch")
    assert topics(answer, "HDF5")


def test_a_reader_who_leaves_early_is_no_failure() -> None:
    command = f"set -o pipefail; {sys.executable} -m tests.doctor.patient 0 nothing doctor | true"
    ended = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_rank_that_fails_ends_all() -> None:
    begin = time.monotonic()
    ended = python("-m", "tests.doctor.patient", 1, "raise", "doctor", ranks=2, limit_s=LIMIT_S)
    assert ended.code == 70
    assert "hpcsplit: rank 1 on " in ended.err
    assert "ZeroDivisionError: an accident" in ended.err
    assert ended.out.strip().startswith("Abort(70)") or not ended.out.strip()
    assert time.monotonic() - begin < 60


def test_a_rank_that_hangs_ends_all_and_says_where() -> None:
    begin = time.monotonic()
    ended = python("-m", "tests.doctor.patient", 1, "stuck", "doctor", ranks=2, limit_s=LIMIT_S)
    assert ended.code
    assert "rank 1 on " in ended.err
    assert "the look at cores and devices has not ended within 3 s" in ended.err
    assert time.monotonic() - begin < 60  # the hang itself would take longer
