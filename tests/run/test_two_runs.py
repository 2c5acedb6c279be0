"""Two runs that want one directory, as processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.small import records, write_toml
from tests.run.owners import held_by_another
from tests.wire.launch import needs_mpi, python

BUSY = 77


@pytest.mark.slow
@pytest.mark.mpi
@needs_mpi
def test_the_second_run_says_why_it_stops_and_goes_on_when_the_first_was_killed(tmp_path: Path) -> None:
    toml, run = write_toml(tmp_path / "c.toml", 2, schedule__epochs=1), tmp_path / "run"
    run.mkdir()
    words = ["-m", "tests.whole.victim", 0, "nothing", "train", toml, "--run-dir", run]
    with held_by_another(run / "lock") as other:
        ended = python(*words, ranks=2, limit_s=200)
        assert ended.code == BUSY, ended.err
        assert ended.err.count("hpcsplit: ") == 1
        assert f"another run is at work in {run}: process {other.pid} on " in ended.err
        assert [p.name for p in run.iterdir()] == ["lock"]
        other.kill()
    ended = python(*words, ranks=2, limit_s=200)
    assert (ended.code, ended.err) == (0, "")
    assert not (run / "lock").exists()


@pytest.mark.parametrize(
    "ranks", [pytest.param(0, marks=pytest.mark.weekly), pytest.param(2, marks=[pytest.mark.mpi, needs_mpi])]
)
def test_a_run_that_was_robbed_ends(tmp_path: Path, ranks: int) -> None:
    toml, run = write_toml(tmp_path / "c.toml", max(1, ranks), schedule__epochs=2000), tmp_path / "run"
    ended = python("-m", "tests.run.robbed", "train", toml, "--run-dir", run, ranks=ranks, limit_s=200)
    assert ended.code == BUSY, ended.err
    assert f"the lock {run}/lock belongs to process 4711 on n1, since " in ended.err
    assert "it ends here and writes nothing more. Go on with the other run, or start again" in ended.err
    assert len(records(run)) < 2000
    assert '"pid":4711' in (run / "lock").read_text()
