"""The short form of `tools/faults --calls`: a real disk's refusals, as the C library reports them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import SHARE
from tests.wire.launch import ROOT
from tools.campaigns import refusing
from tools.campaigns.refusing import KINDS, Trial, build, program, table


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("library"))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("library")
def test_a_run_and_an_export_under_refusals(tmp_path: Path) -> None:
    every, scenes = ("47", "copy,export") if SHARE == 1 else ("131", "copy")
    command = [sys.executable, "-m", "tools.campaigns.faults", "--calls", "--every", every, "--out", str(tmp_path)]
    ended = subprocess.run([*command, "--scenes", scenes], cwd=ROOT, capture_output=True, text=True, timeout=880)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    trials = [Trial(**json.loads(line)) for line in (tmp_path / "refusals.jsonl").read_text().splitlines()]
    assert len(trials) >= len(KINDS)
    assert {trial.kind for trial in trials} == set(KINDS)
    assert not any(trial.wrong for trial in trials)
    assert any(trial.code == 73 for trial in trials)
    again = subprocess.run([*command, "--scenes", scenes], cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = re.search(r"copy: \d+ calls, (\d+) refusals, (\d+) of them tried already", again.stderr)
    assert said
    planned, known = int(said[1]), int(said[2])
    assert known  # all, where the calls of two threads have come in the same order
    assert len((tmp_path / "refusals.jsonl").read_text().splitlines()) == len(trials) + planned - known


PROGRAM = """
import ctypes, errno, os, sys
library = ctypes.CDLL(sys.argv[1])
folder, kind, for_good = sys.argv[2], sys.argv[3], int(sys.argv[4])
file = os.open(folder + "/a", os.O_WRONLY | os.O_CREAT)
library.refuse_arm(os.fsencode(folder), 2, getattr(errno, kind, 0), for_good, -1)
os.mkdir("/tmp/elsewhere-" + str(os.getpid()))
os.rmdir("/tmp/elsewhere-" + str(os.getpid()))
os.mkdir(folder + "/b")
done = []
for _ in range(2):
    try:
        done.append(os.write(file, b"1234"))
    except OSError as error:
        done.append(errno.errorcode[error.errno])
print(done, library.refuse_count())
"""


@pytest.mark.parametrize(
    ("kind", "for_good", "outcome"),
    [
        ("EIO", 0, "['EIO', 4] 3"),
        ("EDQUOT", 1, "['EDQUOT', 'EDQUOT'] 3"),
        ("short write", 0, "[2, 4] 3"),
    ],
)
def test_the_library_refuses_one_call_or_all_from_there_on(
    library: Path, tmp_path: Path, kind: str, for_good: int, outcome: str
) -> None:
    words = [sys.executable, "-c", PROGRAM, str(library), str(tmp_path), kind, str(for_good)]
    ended = subprocess.run(words, env={"LD_PRELOAD": str(library)}, capture_output=True, text=True)
    assert (ended.stdout.strip(), ended.stderr) == (outcome, "")


def test_the_table_counts_and_names_what_is_wrong() -> None:
    trials = [
        Trial("copy", 1, "EIO", "write /a", 73, ""),
        Trial("copy", 2, "EIO", "close /a", 75, ""),
        Trial("copy", 3, "EIO", "write /b", -11, "signal 11"),
    ]
    text = table(trials)
    assert "copy | 3/1/1/1" in text
    assert "3 refusals, 1 signals, 1 wrong" in text
    assert "WRONG: copy, call 3 (write /b), EIO: signal 11" in text


def test_results_of_another_library_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusing, "ROOT", tmp_path)
    source = tmp_path / "tools" / "campaigns" / "refuse.c"
    source.parent.mkdir(parents=True)
    (tmp_path / "hpcsplit").mkdir()
    found = set()
    for text in ("one", "another", "one"):
        source.write_text(text)
        program.cache_clear()
        found.add(program())
    program.cache_clear()
    assert len(found) == 2
