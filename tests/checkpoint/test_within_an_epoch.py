"""A run that was stopped between two steps of an epoch goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcsplit.engine import rank
from hpcsplit.files.checkpoints import complete
from hpcsplit.files.hdf5 import read_attributes
from hpcsplit.run.records import Records
from tests.checkpoint.conftest import STOP_AT_ONCE, Run
from tests.checkpoint.starts import Course, learned, told_to_stop
from tests.engine.small import CUTS, write_toml

SEVEN_STEPS = {"data__batch_size": 15, "schedule__epochs": 4, "schedule__ratio": "1:2"}  # S PP S


def test_a_run_of_the_command_stopped_at_every_step(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **{**SEVEN_STEPS, "schedule__epochs": 3})  # S PP
    whole, parts = Run(toml, tmp_path / "whole"), Run(toml, tmp_path / "parts")
    assert whole.go() == 0
    assert [parts.go(*STOP_AT_ONCE) for _ in range(8)] == [75] * 8  # after steps 3 and 6, and after the epoch
    assert parts.go() == 0
    ours, theirs = (Records(run.folder / "records.jsonl").load() for run in (parts, whole))
    assert [record.learned() for record in ours] == [record.learned() for record in theirs]
    assert all(0 < (record.train_s or 0.0) <= (record.wall_s or 0.0) for record in ours)


@pytest.mark.parametrize(
    ("method", "stages", "changes"),
    [
        ("gsadmm", 2, {"method__update": "set"}),  # two passes an epoch
        ("delayed", 3, {"method__microbatches": 3, "method__predict": True, "method__epoch_end": "run"}),
    ],
)
def test_stopped_at_every_step(tmp_path: Path, method: str, stages: int, changes: dict[str, Any]) -> None:
    changes = {**SEVEN_STEPS, "method__name": method, **changes}
    whole, parts = Course(tmp_path / "whole", **changes), Course(tmp_path / "parts", **changes)
    assert whole.start(CUTS[stages])
    stops = 0
    while not parts.start(CUTS[stages], prepare=told_to_stop):
        stops += 1
    assert stops > 6
    assert learned(parts) == learned(whole)


@pytest.mark.parametrize(
    ("method", "stages", "changes"),
    [
        ("penalty", 3, {"data__copies": 2, "data__augment": True, "checkpoint__aux": "copy"}),
        ("al", 2, {"checkpoint__aux": "copy", "store__kind": "memory", "method__downsample": 2}),
        ("al", 3, {"store__dtype": "float16"}),
        ("backprop", 2, {"optim__name": "adam", "optim__lr": 1e-3}),
        ("backprop", 3, {"schedule__microbatches": 3, "schedule__pipeline": "1f1b"}),
        ("delayed", 2, {"method__predict": True}),
        ("delayed", 3, {"method__weights": "replay", "model__name": "tests.engine.tinynet:noisy"}),
        ("delayed", 3, {"method__weights": "stale", "method__epoch_end": "run", "run__channels_last": True}),
        ("delayed", 3, {"method__timetable": "step", "method__epoch_end": "run", "method__lr_anneal": 9}),
        ("delayed", 3, {"method__microbatches": 2, "method__weights": "stale", "run__channels_last": True}),
        ("delayed", 4, {"run__precision": "bfloat16", "method__compensation": 0.1}),
        ("delayed", 4, {"run__precision": "bfloat16", "method__compensation": 0.1, "method__microbatches": 2}),
        ("chunked", 3, {"method__multiplier": True, "method__chunk": 2, "method__visits": 2}),
        ("auxnet", 3, {"method__multiplier": True, "method__aux_warmup": 5, "method__aux_width": 4}),
    ],
)
def test_it_ends_as_one_never_stopped(tmp_path: Path, method: str, stages: int, changes: dict[str, Any]) -> None:
    changes = {**SEVEN_STEPS, "method__name": method, "checkpoint__every_epochs": 0, **changes}
    whole, parts = Course(tmp_path / "whole", **changes), Course(tmp_path / "parts", **changes)
    assert whole.start(CUTS[stages])
    for place in [(0, 1), (1, 0), (2, 1)]:
        assert not parts.start(CUTS[stages], stop=place)
        assert not complete(parts.checkpoints)[0].name.endswith("step-000000")
    assert parts.start(CUTS[stages])
    assert learned(parts) == learned(whole)


def test_without_its_rows_it_says_so(tmp_path: Path) -> None:
    run = Course(tmp_path, **SEVEN_STEPS, checkpoint__aux="recompute")
    assert not run.start(stop=(0, 0))
    assert not run.start(stop=(1, 0))  # stopped in the exact epoch: nothing was lost
    assert not any("computed anew" in line for line in run.kept.said)
    assert run.start()
    assert [record.recomputed for record in run.records] == [False, True, True, False]
    assert any("the auxiliary variables are computed anew: the checkpoint has none" in line for line in run.kept.said)


def test_the_clock_saves_within_an_epoch_and_the_run_goes_on(tmp_path: Path) -> None:
    whole = Course(tmp_path / "whole", **SEVEN_STEPS)
    often = Course(tmp_path / "often", **SEVEN_STEPS, checkpoint__keep=99, checkpoint__every_minutes=1e-6)
    assert whole.start()
    assert often.start()
    assert learned(often) == learned(whole)
    steps = {read_attributes(folder / "manifest.h5")["step"] for folder in complete(often.checkpoints)}
    assert steps == {0, 3, 6}


def test_a_run_killed_after_a_stop_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows written after the checkpoint, which aux = "keep" refers to, do no harm to it."""
    whole, run = Course(tmp_path / "whole", **SEVEN_STEPS), Course(tmp_path / "run", **SEVEN_STEPS)
    assert whole.start()
    assert not run.start(stop=(1, 0))
    with monkeypatch.context() as patched:
        patched.setattr(rank, "evaluate", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.start()
    assert run.start()
    assert learned(run) == learned(whole)
    assert not any(record.recomputed for record in run.records)
