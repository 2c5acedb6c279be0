"""A run that was stopped between two steps of an epoch goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcsplit.checkpoint.folder import complete
from hpcsplit.files.hdf5 import read_attributes
from tests.checkpoint.conftest import STOP_AT_ONCE, Run
from tests.engine.small import records, weights, write_toml

SEVEN_STEPS = {"data__batch_size": 15, "schedule__epochs": 4, "schedule__ratio": "1:2"}  # S PP S


def stopped_all_the_time(run: Run, *overrides: object) -> int:
    """Started again and again until it is done; the number of stops."""
    for stops in range(40):
        if (code := run.go(*STOP_AT_ONCE, *overrides)) == 0:
            return stops
        assert code == 75
    raise AssertionError("it does not come to its end")


@pytest.mark.parametrize(
    ("method", "stages", "changes"),
    [
        ("penalty", 2, {}),
        ("penalty", 3, {"checkpoint__aux": "copy"}),
        ("al", 2, {"checkpoint__aux": "copy", "store__kind": "memory", "method__downsample": 2}),
        ("al", 3, {"store__dtype": "float16"}),
        ("penalty", 3, {"data__copies": 2, "data__augment": True, "checkpoint__aux": "copy"}),
        ("gsadmm", 2, {"method__update": "set"}),  # two passes an epoch
        ("gsadmm", 3, {"checkpoint__aux": "copy"}),
        ("gsam", 2, {}),
        ("backprop", 2, {"optim__name": "adam", "optim__lr": 1e-3}),
        ("delayed", 2, {"method__predict": True}),
        ("delayed", 3, {"method__weights": "replay", "model__name": "tests.engine.tinynet:noisy"}),
        ("delayed", 3, {"method__weights": "stale", "method__epoch_end": "run", "run__channels_last": True}),
        ("delayed", 3, {"method__timetable": "step", "method__epoch_end": "run", "method__lr_anneal": 9}),
        ("delayed", 3, {"method__microbatches": 3, "method__predict": True, "method__epoch_end": "run"}),
        ("delayed", 3, {"method__microbatches": 2, "method__weights": "stale", "run__channels_last": True}),
        ("delayed", 4, {"run__precision": "bfloat16", "method__compensation": 0.1}),
        ("delayed", 4, {"run__precision": "bfloat16", "method__compensation": 0.1, "method__microbatches": 2}),
        ("chunked", 3, {"method__multiplier": True, "method__chunk": 2, "method__visits": 2}),
        ("auxnet", 3, {"method__multiplier": True, "method__aux_warmup": 5, "method__aux_width": 4}),
    ],
)
def test_it_ends_with_the_weights_of_one_never_stopped(tmp_path: Path, method: str, stages: int, changes: dict) -> None:
    toml = write_toml(tmp_path / "c.toml", stages, **{**SEVEN_STEPS, "method__name": method, **changes})
    whole, parts = Run(toml, tmp_path / "whole"), Run(toml, tmp_path / "parts")
    assert whole.go() == 0
    assert stopped_all_the_time(parts) > 6
    assert weights(parts.folder) == weights(whole.folder)
    assert not any(record["recomputed"] for record in records(parts.folder))


def test_the_record_is_that_of_the_whole_epoch(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **SEVEN_STEPS)
    whole, parts = Run(toml, tmp_path / "whole"), Run(toml, tmp_path / "parts")
    assert whole.go() == 0
    stopped_all_the_time(parts)
    for ours, theirs in zip(records(parts.folder), records(whole.folder), strict=True):
        for key in ("loss", "test_accuracy", "aux_loss", "terms"):
            assert ours[key] == theirs[key], key
        for a, b in zip(ours["stages"], theirs["stages"], strict=True):
            assert a["violation"] == b["violation"]
            assert a["sent_bytes"] >= b["sent_bytes"]
        assert ours["train_s"] > 0
        assert ours["wall_s"] >= ours["train_s"]


def test_pdadmm_carries_its_sums(tmp_path: Path) -> None:
    changes = {
        "data__batch_size": 15,
        "data__augment": False,
        "model__name": "mlp",
        "model__depth": 4,
        "model__width": 8,
        "method__name": "pdadmm",
        "schedule__epochs": 3,
        "schedule__ratio": "0:1",
        "schedule__warmup": 0,
        "split__cuts": [2],
    }
    toml = write_toml(tmp_path / "c.toml", 2, **changes)
    whole, parts = Run(toml, tmp_path / "whole"), Run(toml, tmp_path / "parts")
    assert whole.go() == 0
    assert stopped_all_the_time(parts) > 3
    assert weights(parts.folder) == weights(whole.folder)


def test_without_its_rows_it_says_so_and_marks_the_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **{**SEVEN_STEPS, "checkpoint__aux": "recompute"})
    run = Run(toml, tmp_path / "run")
    assert run.go(*STOP_AT_ONCE) == 75
    assert run.go("--run.time_limit", 0) == 0  # stopped in the exact epoch: nothing is lost
    assert not any(record["recomputed"] for record in records(run.folder))

    again = Run(toml, tmp_path / "again")
    stopped_all_the_time(again)
    assert [record["recomputed"] for record in records(again.folder)] == [False, True, True, False]
    assert "the auxiliary variables are computed anew" in capsys.readouterr().out


def test_the_clock_saves_within_an_epoch_and_the_run_goes_on(tmp_path: Path) -> None:
    changes = {**SEVEN_STEPS, "checkpoint__keep": 99, "checkpoint__every_minutes": 1e-6}
    whole = Run(write_toml(tmp_path / "w.toml", 2, **SEVEN_STEPS), tmp_path / "whole")
    often = Run(write_toml(tmp_path / "o.toml", 2, **changes), tmp_path / "often")
    assert whole.go() == 0
    assert often.go() == 0
    assert weights(often.folder) == weights(whole.folder)
    steps = {read_attributes(folder / "manifest.h5")["step"] for folder in complete(often.checkpoints)}
    assert steps == {0, 3, 6}


def test_a_run_killed_after_a_stop_goes_on_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows written after the checkpoint, which aux = "keep" refers to, do no harm to it."""
    toml = write_toml(tmp_path / "c.toml", 2, **SEVEN_STEPS)
    whole, run = Run(toml, tmp_path / "whole"), Run(toml, tmp_path / "run")
    assert whole.go() == 0
    while run.go(*STOP_AT_ONCE) == 75 and complete(run.checkpoints)[0].name != "epoch-0001-step-000003":
        pass
    with monkeypatch.context() as patched:
        patched.setattr("hpcsplit.engine.rank.evaluate", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.go()
    assert run.go() == 0
    assert weights(run.folder) == weights(whole.folder)
