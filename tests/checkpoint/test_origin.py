"""A run that begins with what another one has learned (train --continue-from)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hpcsplit.checkpoint.state import read_weights
from hpcsplit.files.hdf5 import read_tensors
from hpcsplit.nets.statedict import tensors_of
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from tests.checkpoint.conftest import STOP_AT_ONCE, THREE_STEPS, Run, half_done
from tests.engine.small import config, make_jobs, records, train_here, weights, write_toml

EXACT = {**THREE_STEPS, "method__name": "backprop", "schedule__epochs": 2, "optim__lr_schedule": "constant"}
EXACT |= {"data__augment": False}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three of five epochs of two stages."""
    return half_done(tmp_path_factory.mktemp("source"), optim__lr=0.02)


def begin(source: Run, place: Path, stages: int, *words: object, **changes: object) -> int:
    toml = write_toml(place / f"c{stages}.toml", stages, **{**EXACT, **changes})
    return train_here(toml, place / f"run{stages}", "--continue-from", source.folder, *words)


def saved(run: Path) -> dict[str, torch.Tensor]:
    return read_weights(RunDir(run).checkpoint(), tensors_of(Setting(config()).net)).weights


@pytest.mark.parametrize("optimizer", [False, True])
def test_it_is_the_same_network_trained_by_torch(source: Run, tmp_path: Path, *, optimizer: bool) -> None:
    """The whole network with the weights that two stages have learned, and with their momentum."""
    assert begin(source, tmp_path, 1, *["--with-optimizer"] * optimizer) == 0
    cfg = config(1, **EXACT)
    (job,) = make_jobs(cfg, 1, tmp_path / "reference")
    net = Setting(cfg).network()
    net.load_state_dict(saved(source.folder))
    sgd = torch.optim.SGD(net.parameters(), lr=cfg.optim.lr, momentum=0.9, weight_decay=1e-4)
    if optimizer:
        files = [half_stage(source, k) for k in range(2)]
        for name, p in net.named_parameters():
            (momentum,) = [file[f"optim/{name}/momentum_buffer"] for file in files if f"weights/{name}" in file]
            sgd.state[p]["momentum_buffer"] = momentum
    net.train()
    for epoch in range(2):
        for ids in job.epoch_batches(epoch):
            batch = job.batch(ids)
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(net(batch.x), batch.y).backward()
            sgd.step()
    found = saved(tmp_path / "run1")
    for name, t in net.state_dict().items():
        torch.testing.assert_close(found[name], t, msg=name)


def half_stage(run: Run, k: int) -> dict[str, torch.Tensor]:
    return read_tensors(run.newest / f"stage-{k:03d}.h5")[0]


def test_the_cuts_do_not_matter(source: Run, tmp_path: Path) -> None:
    assert [begin(source, tmp_path, stages, "--with-optimizer") for stages in (1, 3)] == [0, 0]
    assert weights(tmp_path / "run1") == weights(tmp_path / "run3")


def test_one_that_is_killed_before_its_first_checkpoint_begins_in_the_same_way(source: Run, tmp_path: Path) -> None:
    """Though the other run has gone on meanwhile, and even without being told once more."""
    other = Run(source.toml, tmp_path / "other")
    shutil.copytree(source.folder, other.folder, symlinks=True)
    assert begin(other, tmp_path, 2) == 0
    expected = weights(tmp_path / "run2")
    for words, kept in (
        (["--continue-from", other.folder], True),
        (["--continue-from", other.folder], False),
        ([], False),
    ):
        shutil.rmtree(tmp_path / "run2" / "checkpoints")
        if not kept:  # killed within its first epoch
            (tmp_path / "run2" / "records.jsonl").unlink()
        other.go(*STOP_AT_ONCE, "--checkpoint.keep", 9)
        assert train_here(tmp_path / "c2.toml", tmp_path / "run2", *words) == 0
        assert weights(tmp_path / "run2") == expected


def test_what_was_there_before_is_named_and_does_not_change(
    source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in source.folder.rglob("*") if p.is_file()}
    assert begin(source, tmp_path, 2, *STOP_AT_ONCE) == 75
    assert f"begins with 32 of 32 tensors of {source.newest}\n" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in source.folder.rglob("*") if p.is_file()} == before
    (start,) = json.loads((tmp_path / "run2" / "provenance.json").read_text())["starts"]
    assert start["begins_with"]["folder"] == str(source.newest)


def test_with_a_checkpoint_of_its_own_it_goes_on(
    source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(source, tmp_path, 2, *STOP_AT_ONCE) == 75
    assert begin(source, tmp_path, 2) == 0
    assert "the run goes on from there, --continue-from was for its first start" in capsys.readouterr().out
    whole = tmp_path / "whole"
    assert train_here(tmp_path / "c2.toml", whole, "--continue-from", source.folder) == 0
    assert weights(tmp_path / "run2") == weights(whole)


def test_another_source_than_the_first_one_is_refused(
    source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(source, tmp_path, 2, *STOP_AT_ONCE) == 75
    for words in ([tmp_path / "run2"], [source.folder, "--with-optimizer"], [source.folder, "--checkpoint", 2]):
        assert train_here(tmp_path / "c2.toml", tmp_path / "run2", "--continue-from", *words) == 65
        assert capsys.readouterr().err.count("hpcsplit: ") == 1
    assert train_here(tmp_path / "c2.toml", source.folder, "--continue-from", tmp_path / "run2") == 65
    assert f"{source.folder} has begun with nothing but its initial weights" in capsys.readouterr().err


def test_another_head_stays_as_it_began(source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert begin(source, tmp_path, 2, "--optim.lr", 1e-30, model__name="tests.checkpoint.oddnets:other_head") == 0
    said = capsys.readouterr().out
    assert "begins with 31 of 32 tensors" in said
    assert "at their initial values stay those where head.1.weight is 10x128 there, 10x256 here" in said
    net = Setting(config(2, model__name="tests.checkpoint.oddnets:other_head")).network()
    found = read_weights(RunDir(tmp_path / "run2").checkpoint(), tensors_of(net)).weights
    torch.testing.assert_close(found["head.1.weight"], net.state_dict()["head.1.weight"])
    torch.testing.assert_close(found["stem.0.weight"], saved(source.folder)["stem.0.weight"])


def test_what_cannot_be_taken_over_is_one_sentence(
    source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {
        "no weight in common": ["--model.name", "cnn", "--split.cuts", "[2]"],
        'has the state of "sgd", optim.name is "adam"': ["--with-optimizer", "--optim.name", "adam"],
        "has no complete checkpoint epoch-0099-step-000000": ["--checkpoint", "epoch-0099-step-000000"],
    }
    for sentence, words in refused.items():
        assert begin(source, tmp_path, 2, *words) == 65
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
        assert not (tmp_path / "run2").exists()


def test_a_damaged_checkpoint_is_refused(source: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Run(source.toml, tmp_path / "other")
    shutil.copytree(source.folder, other.folder, symlinks=True)
    (other.newest / "stage-001.h5").write_bytes(b"no file of this program")
    assert begin(other, tmp_path, 2) == 65
    assert "stage-001.h5 does not have the checksum" in capsys.readouterr().err


def test_the_records_are_those_of_the_new_run_alone(source: Run, tmp_path: Path) -> None:
    assert begin(source, tmp_path, 2) == 0
    assert [record["epoch"] for record in records(tmp_path / "run2")] == [0, 1]
