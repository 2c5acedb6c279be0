"""What is written down about each start, and how little of it goes into a checkpoint."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hpcsplit
from hpcsplit.errors import ConfigError, StoreError
from hpcsplit.files import atomic
from hpcsplit.host.process import Process
from hpcsplit.run import folder, provenance
from hpcsplit.run.folder import RunDir
from tests.engine.small import config, train_here, write_toml

STOP_AT_ONCE = ("--run.time_limit", 1e-6)


def starts(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "provenance.json").read_text())["starts"]
    return found


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    variables = {"SLURM_JOB_ID": "7", "SLURM_JWT": "secret", "SLURM_STEP_KEY": "secret", "HOME": "/h"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOADEDMODULES", "gcc/13.2:mpich/5.0")
    places = [provenance.place("n1", torch.device("cpu"))] * 3 + [provenance.place("n2", torch.device("cpu"))]
    return provenance.facts(config(2, run__seed=5), places, "MPICH 5", [3])


def test_a_start_is_described(facts: dict[str, Any]) -> None:
    assert json.loads(json.dumps(facts)) == facts
    assert facts["slurm"]["SLURM_JOB_ID"] == "7"
    assert "secret" not in json.dumps(facts)
    assert facts["modules"] == ["gcc/13.2", "mpich/5.0"]
    assert (facts["seed"], facts["cuts"], facts["mpi"]) == (5, [3], "MPICH 5")
    assert torch.__version__.startswith(facts["packages"]["torch"])
    assert facts["config"]["optim.lr"] == {"value": 0.05, "origin": "tests"}
    assert facts["config"]["optim.momentum"] == {"value": 0.9, "origin": "default"}
    umask = os.umask(0o022)
    os.umask(umask)
    assert int(facts["umask"], 8) == umask
    assert f"uid {os.geteuid()}" in facts["user"]
    assert facts["ranks"][3]["host"] == "n2"
    assert facts["ranks"][0]["process"] == vars(Process.this())
    assert facts["ranks"][0]["cpu"] in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    cores = facts["ranks"][0]["cores"]
    spans = [[int(n) for n in span.split("-")] for span in cores.split(",")]
    assert {c for span in spans for c in range(span[0], span[-1] + 1)} == os.sched_getaffinity(0)


def test_a_checkpoint_has_it_in_short(facts: dict[str, Any]) -> None:
    short = json.loads(provenance.compact(facts))
    assert short["ranks"] == {"n1:cpu": "0-2", "n2:cpu": "3"}
    assert "optim.lr" in short["config"]
    assert "optim.momentum" not in short["config"]
    assert short["slurm"] == facts["slurm"]


def test_however_long_it_is_a_checkpoint_has_room(facts: dict[str, Any]) -> None:
    facts["ranks"] = [{**facts["ranks"][0], "host": f"node{k:05}"} for k in range(5000)]
    facts["argv"] = ["x" * 50_000]
    text = provenance.compact(facts)
    assert len(text) <= 32_000
    short = json.loads(text)
    assert short["ranks"] == short["argv"] == "see provenance.json"
    assert short["modules"] == ["gcc/13.2", "mpich/5.0"]


def test_every_start_and_how_the_one_before_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml, run = write_toml(tmp_path / "c.toml", 1, schedule__epochs=2, schedule__ratio="1:1"), tmp_path / "run"
    assert train_here(toml, run, *STOP_AT_ONCE) == 75
    with monkeypatch.context() as patched:
        patched.setattr(provenance, "end", lambda *_: None)
        train_here(toml, run, *STOP_AT_ONCE)
    assert train_here(toml, run) == 0
    assert train_here(toml, run) == 0
    found = starts(run)
    stopped = "stopped: run.time_limit reached"
    assert [start["before"] for start in found] == [None, stopped, "died", "done"]
    assert [start["end"] for start in found] == [stopped, "died", "done", "done"]
    assert [start["start"] for start in found] == [1, 2, 3, 4]
    assert found[0]["continued_from"] is None
    assert found[1]["continued_from"] < found[3]["continued_from"] == "epoch-0002-step-000000"
    short = json.loads(provenance.newest(RunDir(run).provenance))
    assert [end for _, end in short["earlier"]] == [stopped, "died", "done"]
    assert short["start"] == 4
    origins = [line.rpartition(" # ")[2] for line in (run / "config.toml").read_text().splitlines() if " = " in line]
    assert set(origins) == {"default", "command line", str(toml)}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": 3}', '{"starts": [1]}', "[" * 100_000, "\xff"])
def test_damaged_provenance_does_not_stop_a_run(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir(tmp_path)
    run.provenance.write_text(content, encoding="latin-1")
    with caplog.at_level(logging.WARNING, "hpcsplit"):
        run.note_start(config(1), [provenance.place("n1", torch.device("cpu"))], "none", [])
    assert len(starts(tmp_path)) == 1
    assert ("damaged" in caplog.text) == (content != '{"starts": [1]}')


def test_before_the_first_start_there_is_nothing(tmp_path: Path) -> None:
    assert provenance.newest(RunDir(tmp_path).provenance) == ""


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git here")
def test_the_revision_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e@x"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    package = tmp_path / "hpcsplit"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(hpcsplit, "__file__", str(package / "__init__.py"))
    ask: Callable[[], Any] = provenance._git.__wrapped__
    assert ask() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    assert ask() == {"revision": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "untracked").touch()
    assert ask()["dirty"] is False
    (package / "__init__.py").write_text("x = 1")
    assert ask()["dirty"] is True
    shutil.rmtree(tmp_path / ".git" / "objects")
    assert ask()["revision"] is None


# ------------------------------------------------------------------------------------------------ the folder


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = RunDir(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(StoreError, match="run cannot be written: no space left"):
            run.create(config(1))
    assert list(run.path.iterdir()) == []
    run.create(config(1))
    monkeypatch.setattr(atomic, "write_text", full)
    with pytest.raises(StoreError, match=r"split\.json cannot be written: no space left .*free space"):
        run.save_split("k", {})
    run.release()


def test_a_log_folder_that_shows_late(tmp_path: Path) -> None:
    threading.Timer(0.3, (tmp_path / "log").mkdir).start()
    assert RunDir(tmp_path).wait_for_log(2) == tmp_path / "log" / "rank-002.log"


def test_a_log_folder_that_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_SLOW_FILES_S", 0.2)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=f"rank 2 does not see {tmp_path}/log, .* that all nodes share"):
        RunDir(tmp_path).wait_for_log(2)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("content", ["", "[]", '{"k": 1}', '{"k": {"split": {}, "sha256": 0}}', "[" * 100_000])
def test_damaged_cuts_are_chosen_anew(tmp_path: Path, content: str) -> None:
    run = RunDir(tmp_path)
    run.split.write_text(content)
    assert run.load_split("k") is None
    run.save_split("k", {"cuts": [1], "costs": [1.0, 2.0]})
    assert run.load_split("k") == {"cuts": [1], "costs": [1.0, 2.0]}
    run.split.write_text(run.split.read_text().replace("[1]", "[2]"))
    assert run.load_split("k") is None
