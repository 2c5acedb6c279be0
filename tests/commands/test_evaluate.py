"""`evaluate` on one process finds what the run of any number of stages wrote down, and changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.data.catalog import SPECS, Spec
from hpcsplit.data.dataset import InMemory
from hpcsplit.data.embedded import fake
from hpcsplit.files.atomic import sha256_file
from tests.commands.conftest import BUILT_IN, Run, finished
from tests.commands.damage import flip_a_bit, sign, within_an_epoch
from tests.engine.small import records, train_here, write_toml

BAD, LAUNCH = 65, 77
SCORES = ("loss", "train_accuracy", "test_loss", "test_accuracy")
Command = Callable[..., tuple[int, str, str]]


def evaluated(hpcsplit: Command, folder: Path, *words: object) -> dict[str, Any]:
    code, out, err = hpcsplit("evaluate", folder, "--json", *words)
    assert (code, err) == (0, "")
    answer: dict[str, Any] = json.loads(out)
    return answer


def assert_agrees(found: dict[str, Any], record: dict[str, Any]) -> None:
    assert found["weights_sha256"] == record["weights_sha256"]
    for key in SCORES:
        assert found[key] == pytest.approx(record[key], rel=1e-5), key
        assert found["recorded"][key] == record[key]
    if record["test_accuracy_bn"] is not None:
        assert found["test_accuracy_bn"] == pytest.approx(record["test_accuracy_bn"])


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_it_finds_what_the_run_wrote_down(runs: Callable[[int], Run], hpcsplit: Command, stages: int) -> None:
    folder = runs(stages).folder
    newest = evaluated(hpcsplit, folder)
    assert_agrees(newest, records(folder)[2])
    assert (newest["checkpoint"], newest["epochs_done"], newest["step"]) == ("epoch-0003-step-000000", 3, 0)
    assert (newest["train_samples"], newest["test_samples"]) == (50, 60)
    older = evaluated(hpcsplit, folder, "--checkpoint", "epoch-0002-step-000000")
    assert_agrees(older, records(folder)[1])
    assert older["weights_sha256"] != newest["weights_sha256"]


def test_a_run_with_rows_at_every_layer(tmp_path: Path, hpcsplit: Command) -> None:
    """One stage of such a method would have a store of its own; an evaluation has none."""
    layers = {"model__name": "mlp", "model__depth": 4, "model__width": 8, "method__name": "pdadmm"}
    changes = {**layers, "schedule__ratio": "0:1", "schedule__warmup": 0, "data__augment": False}
    run = finished(tmp_path, 2, **changes)
    assert_agrees(evaluated(hpcsplit, run.folder), records(run.folder)[2])


def test_nothing_in_the_run_directory_changes(copy: Run, hpcsplit: Command) -> None:
    def state() -> dict[Path, tuple[str, int]]:
        files = [p for p in copy.folder.rglob("*") if p.is_file()]
        return {p: (sha256_file(p), p.stat().st_mtime_ns) for p in files}

    before = state()
    evaluated(hpcsplit, copy.folder)
    assert state() == before
    assert any(p.parent.name == "aux" for p in before)


def test_the_text_has_both_columns(runs: Callable[[int], Run], hpcsplit: Command) -> None:
    code, out, _ = hpcsplit("evaluate", runs(2).folder)
    last = records(runs(2).folder)[2]
    lines = dict(line.rsplit(maxsplit=2)[0::2] for line in out.splitlines() if line.startswith("test "))
    assert code == 0
    assert lines["test accuracy"] == f"{last['test_accuracy']:.2%}"
    assert "after 3 epochs" in out
    assert "50 training samples, 60 test samples" in out
    assert last["weights_sha256"] in out


def test_a_checkpoint_within_an_epoch_has_no_line_to_compare_with(copy: Run, hpcsplit: Command) -> None:
    within_an_epoch(copy.newest, 2)
    found = evaluated(hpcsplit, copy.folder)
    assert (found["checkpoint"], found["step"], found["recorded"]) == ("epoch-0003-step-000002", 2, None)
    assert found["weights_sha256"] == records(copy.folder)[2]["weights_sha256"]
    _, out, _ = hpcsplit("evaluate", copy.folder)
    assert "after 3 epochs and 2 steps of the next" in out
    assert "nothing recorded to compare with: it lies within an epoch" in out


def test_a_run_stopped_within_its_first_epoch(tmp_path: Path, hpcsplit: Command) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **BUILT_IN, data__batch_size=10)
    assert train_here(toml, tmp_path / "run", "--split.cuts", "[2]", "--run.time_limit", 1e-6) == 75
    found = evaluated(hpcsplit, tmp_path / "run")
    assert found["epochs_done"] == 0
    assert 0 < found["step"] < 10
    assert found["checkpoint"] == f"epoch-0000-step-{found['step']:06d}"
    assert found["recorded"] is None


def test_records_that_are_gone_are_no_hindrance(copy: Run, hpcsplit: Command) -> None:
    (copy.folder / "records.jsonl").unlink()
    assert evaluated(hpcsplit, copy.folder)["recorded"] is None


def test_weights_of_another_run_are_noticed(copy: Run, runs: Callable[[int], Run], hpcsplit: Command) -> None:
    shutil.copy(runs(3).folder / "records.jsonl", copy.folder / "records.jsonl")
    code, out, err = hpcsplit("evaluate", copy.folder)
    assert code == BAD
    assert "does not have the weights" in err
    assert "for epoch 3" in err
    assert "test accuracy" in out


def test_a_checkpoint_by_its_epoch_or_rank(copy: Run, hpcsplit: Command) -> None:
    """N counts as people do: epoch-0002 is after 2 epochs, record 1.  The best one is what its file says."""
    (copy.folder / "checkpoints" / "best").write_text("epoch-0002-step-000000\n")
    for name, done in (("2", 2), ("3", 3), ("0002", 2), ("latest", 3), ("best", 2)):
        assert_agrees(evaluated(hpcsplit, copy.folder, "--checkpoint", name), records(copy.folder)[done - 1])


def test_a_checkpoint_that_is_not_there(copy: Run, hpcsplit: Command) -> None:
    for name, words in (
        ("1", "has no complete checkpoint epoch-0001-step-000000; it has epoch-0003-step-000000, epoch-0002"),
        ("best", "has no checkpoint that is marked as the best one, as a run with checkpoint.best = true"),
        ("9" * 30, f"has no complete checkpoint {'9' * 30}; it has"),
        ("latest3", "has no complete checkpoint latest3; it has"),
    ):
        code, _, err = hpcsplit("evaluate", copy.folder, "--checkpoint", name)
        assert code == BAD
        assert words in err
        assert err.count("\n") == 1


def test_another_data_set(copy: Run, hpcsplit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalised with the run's own mean and deviation: a set that is the run's own but for a name has its scores; no
    line is compared."""
    own = evaluated(hpcsplit, copy.folder)
    spec = replace(SPECS["fake"], name="twin", train=100, test=60, endless=False, reader=f"{__name__}:twin")
    monkeypatch.setitem(SPECS, "twin", spec)
    found = evaluated(hpcsplit, copy.folder, "--data.name", "twin")
    assert (found["data"], found["recorded"], found["test_accuracy_bn"]) == ("twin", None, None)
    assert {key: found[key] for key in SCORES} == pytest.approx({key: own[key] for key in SCORES})
    monkeypatch.setitem(SPECS, "pale", replace(spec, name="pale", reader=f"{__name__}:pale"))
    assert evaluated(hpcsplit, copy.folder, "--data.name", "pale")["test_loss"] != own["test_loss"]
    code, _, err = hpcsplit("evaluate", copy.folder, "--data.name", "digits")
    assert code == BAD
    assert "digits has samples of shape (1, 16, 16), the run's network takes (3, 16, 16)" in err


def twin(spec: Spec, root: str, download: bool) -> tuple[InMemory, InMemory]:
    train, test = fake(SPECS["fake"])
    return train.first(spec.train), test.first(spec.test)


def pale(spec: Spec, root: str, download: bool) -> tuple[InMemory, InMemory]:
    """Half as bright: with a mean and deviation of its own nothing would change."""
    train, test = twin(spec, root, download)
    return InMemory(train.images // 2, train.labels), InMemory(test.images // 2, test.labels)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("name", ["stage-000.h5", "stage-001.h5", "manifest.h5"])
def test_damage_is_a_sentence(copy: Run, hpcsplit: Command, name: str) -> None:
    flip_a_bit(copy.newest / name)
    code, out, err = hpcsplit("evaluate", copy.folder)
    assert (code, out) == (BAD, "")
    assert f"damaged: {name} does not have the checksum" in err
    assert "epoch-0002-step-000000, takes its place" in err
    assert err.count("\n") == 1


def test_a_manifest_of_another_program_is_a_sentence(copy: Run, hpcsplit: Command) -> None:
    (copy.newest / "manifest.h5").write_bytes((copy.newest / "stage-000.h5").read_bytes())
    sign(copy.newest)
    code, _, err = hpcsplit("evaluate", copy.folder)
    assert code == BAD
    assert "manifest.h5 cannot be understood (it has no cuts)" in err


def test_a_stage_that_is_missing_is_a_sentence(copy: Run, hpcsplit: Command) -> None:
    (copy.newest / "stage-001.h5").unlink()
    sign(copy.newest)
    code, _, err = hpcsplit("evaluate", copy.folder)
    assert code == BAD
    assert "has no " in err


def test_a_stage_that_is_there_twice_is_a_sentence(copy: Run, hpcsplit: Command) -> None:
    shutil.copy(copy.newest / "stage-001.h5", copy.newest / "stage-002.h5")
    sign(copy.newest)
    code, _, err = hpcsplit("evaluate", copy.folder)
    assert code == BAD
    assert "is in stage-002.h5 and in a file before it" in err


def test_an_unknown_name_lists_those_there(copy: Run, hpcsplit: Command) -> None:
    code, _, err = hpcsplit("evaluate", copy.folder, "--checkpoint", "../../secret")
    assert code == BAD
    assert "no complete checkpoint ../../secret; it has epoch-0003-step-000000, epoch-0002-step-000000" in err


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_checkpoints(tmp_path: Path, hpcsplit: Command, there: bool) -> None:
    if there:
        (tmp_path / "run" / "checkpoints" / "epoch-0001-step-000000.tmp").mkdir(parents=True)
    code, _, err = hpcsplit("evaluate", tmp_path / "run")
    assert code == BAD
    assert "run has no complete checkpoint (looked in" in err


def test_several_processes_are_refused(
    runs: Callable[[int], Run], hpcsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMI_SIZE", "2")
    code, _, err = hpcsplit("evaluate", runs(2).folder)
    assert code == LAUNCH
    assert "PMI_SIZE says that 2 processes were started" in err


def test_the_overrides_of_the_run_hold_whatever_the_file_says(copy: Run, tmp_path: Path, hpcsplit: Command) -> None:
    other = write_toml(tmp_path / "other.toml", 2, **{**BUILT_IN, "data__limit_test": 50, "run__seed": 1})
    with_file, without = (hpcsplit("evaluate", copy.folder, "--json", *words) for words in (("--config", other), ()))
    assert with_file[0] == 0
    assert with_file[1] == without[1]


def test_a_file_that_names_another_network(copy: Run, tmp_path: Path, hpcsplit: Command) -> None:
    other = write_toml(tmp_path / "other.toml", 2, **{**BUILT_IN, "model__name": "resnet14"})
    code, _, err = hpcsplit("evaluate", copy.folder, "--config", other)
    assert code == BAD
    assert 'other.toml has model.name = "resnet14"' in err


# ------------------------------------------------------------------------------------------------ a user's network


def test_code_is_taken_from_the_users_own_configuration_only(
    tmp_path: Path, hpcsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "imported"
    module = tmp_path / "strange_nets.py"
    module.write_text(f"open({str(marker)!r}, 'w')\nfrom tests.engine.tinynet import small\n")
    monkeypatch.syspath_prepend(tmp_path)
    toml = write_toml(tmp_path / "c.toml", 2, model__name="strange_nets:small", schedule__epochs=2)
    assert train_here(toml, tmp_path / "run") == 0
    monkeypatch.delitem(__import__("sys").modules, "strange_nets")
    marker.unlink()

    code, _, err = hpcsplit("evaluate", tmp_path / "run")
    assert code == BAD
    assert "names code to be run" in err
    assert "--config" in err
    assert not marker.exists()
    assert_agrees(evaluated(hpcsplit, tmp_path / "run", "--config", toml), records(tmp_path / "run")[-1])
