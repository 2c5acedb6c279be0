"""The short form of tools/faults, and what the campaign itself does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import SHARE
from tests.wire.launch import ROOT, needs_mpi
from tools.campaigns.faults import Result, damage, table
from tools.campaigns.injected import Injection, located
from tools.campaigns.moments import DISK, HOOKS, IMPORT, KINDS, MOMENTS, TORN, Fault, Hook, draw

CALLS = {k: {rank: {hook.key: 5 for hook in HOOKS} for rank in range(k)} for k in (1, 2, 3, 4)}


@pytest.mark.mpi
@needs_mpi
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_short_campaign(tmp_path: Path) -> None:
    count = 8 if SHARE == 1 else 1
    command = [
        sys.executable,
        "-m",
        "tools.campaigns.faults",
        "--short",
        "--faults",
        str(count),
        "--out",
        str(tmp_path),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["tried"] == found["in_time"] == found["equal"] == count
    assert found["struck"] >= max(1, count - 1)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert f"{count} faults, {count} of them tried already" in again.stderr
    assert again.stdout == ended.stdout


def test_a_full_campaign_has_ten_faults_for_each_moment_and_all_kinds() -> None:
    faults = draw(204, 0, [1, 2, 3, 4], CALLS)
    moments = {f.moment for f in faults}
    assert min(sum(f.moment == m for f in faults) for m in moments) >= 10
    assert moments >= MOMENTS.keys()
    assert {f.kind for f in faults} == set(KINDS)
    assert {f.stages for f in faults} == {1, 2, 3, 4}


def test_the_same_seed_draws_the_same_faults() -> None:
    assert draw(50, 3, [2, 3], CALLS) == draw(50, 3, [2, 3], CALLS)
    assert draw(50, 3, [2, 3], CALLS) != draw(50, 4, [2, 3], CALLS)


def test_runs_of_one_stage_have_no_faults_of_what_they_never_do() -> None:
    """They have no store."""
    moments = {fault.moment for fault in draw(200, 0, [1], CALLS)}
    assert "checkpoint between the runs" in moments
    assert "store between the runs" not in moments


def test_a_disk_refuses_only_where_it_is_asked() -> None:
    by_key = {hook.key: hook for hook in HOOKS}
    faults = draw(400, 1, [2], CALLS)
    assert all(by_key[f.hook].disk for f in faults if f.kind in DISK)
    assert all(by_key[f.hook].torn for f in faults if f.kind == TORN)


def test_every_hook_is_a_function_of_the_program() -> None:
    for hook in HOOKS:
        if hook is not IMPORT:
            located(hook.place)
            located(hook.within or hook.place)


def test_a_hook_that_is_gone_ends_the_campaign() -> None:
    injection = Injection({"counts": "unused"})
    with pytest.raises(SystemExit, match=r"hpcsplit\.run\.records:Records\.appended is no function any more"):
        injection.install((Hook("hpcsplit.run.records:Records.appended"),))


@pytest.mark.parametrize("kind", ["truncated", "bit flipped"])
@pytest.mark.parametrize("what", ["checkpoint", "store"])
def test_damage_changes_one_file(tmp_path: Path, what: str, kind: str) -> None:
    for name in ("checkpoints/epoch-0001-step-000000", "checkpoints/epoch-0002-step-000003", "aux"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file in ("a.h5", "b.h5"):
            (folder / file).write_bytes(bytes(100))
    damage(Fault(0, 2, 0, f"{what} between the runs", kind, "", 0, 0.4), tmp_path)
    changed = [p for p in tmp_path.rglob("*.h5") if p.read_bytes() != bytes(100)]
    wanted = "epoch-0002-step-000003" if what == "checkpoint" else "aux"
    assert [p.parent.name for p in changed] == [wanted]


def test_the_table_counts_and_names_what_is_bad() -> None:
    good = Fault(0, 2, 1, "compute", "KILL", "before x", 1, 0.5)
    bad = Fault(1, 2, 0, "compute", "KILL", "before x", 2, 0.5)
    results = [
        Result(good, True, 9, 0.4, True, False, True, 2, ()),
        Result(bad, True, 9, 7.0, False, False, True, 2, ("ended after 7.0 s",)),
    ]
    text = table(results)
    assert "compute             | 2/1/2 | 2/1/2" in text
    assert f"BAD: {bad}: ended after 7.0 s" in text
    assert "KILL 7.0" in text
