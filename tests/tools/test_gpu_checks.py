"""The first minutes on a GPU, rehearsed without one: every check runs, says what it found, and ends in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.wire.launch import needs_mpi
from tools.gpu_checks.__main__ import CHECKS
from tools.program import ROOT

QUICK = ("environment", "optimizers", "together")
SLOW = (
    "messages",
    "costs",
    "tests",
    "resume",
    "methods",
    "loops",
    "alone",
    "doctor",
    "training",
)  # of what other tests run


def gpu(out: Path, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "tools.gpu_checks", "--device", "cpu", "--tiny", "--out", str(out), *words]
    temporary = out.with_name("temporary")
    temporary.mkdir(parents=True)
    environment = os.environ | {"TMPDIR": str(temporary)}
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert list(temporary.iterdir()) == []
    path = out / "results.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return ended.returncode, found, ended.stdout + ended.stderr


@needs_mpi
@pytest.mark.mpi
@pytest.mark.slow
def test_the_checks_run_without_a_gpu(tmp_path: Path) -> None:
    assert {*QUICK, *SLOW} == CHECKS.keys()
    code, found, said = gpu(tmp_path / "out", *QUICK)
    assert code == 0, said
    assert list(dict.fromkeys(line["check"] for line in found)) == list(QUICK)
    assert all(line["ok"] for line in found)
    assert {line["way"] for line in found if line["check"] == "together"} >= {"exact, 2 ranks", "penalty, 2 ranks"}


def test_a_check_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.gpu_checks import __main__ as command

    what, ranks, _ = CHECKS["environment"]
    monkeypatch.setitem(CHECKS, "environment", (what, ranks, 0.1))
    (found,) = command._checked("environment", 0.1, ["--device", "cpu", "--out", str(tmp_path)], tmp_path)
    assert found["ok"] is False
    assert found["why"] == "not finished within 0 s"


def test_what_fails_is_said(tmp_path: Path) -> None:
    from tools.gpu_checks import __main__ as command

    found = command._checked("environment", 60.0, ["--device", "cpu", "--out", str(tmp_path), "--bad"], tmp_path)
    assert found[-1]["ok"] is False
    assert "--bad" in found[-1]["said"][-1]


def test_unknown_checks_and_no_time_are_said(tmp_path: Path) -> None:
    code, _, said = gpu(tmp_path / "a" / "out", "nothing")
    assert code == 64
    assert "there is no check 'nothing'; take some of environment" in said
    code, found, _ = gpu(tmp_path / "b" / "out", "--minutes", "0.1")
    assert code == 0
    assert {line["why"] for line in found} == {"no time left"}
