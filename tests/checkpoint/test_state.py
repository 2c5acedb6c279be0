"""What a method carries from epoch to epoch is saved with the stage's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcsplit.checkpoint.state import load_stage, load_weights, stage_tensors
from hpcsplit.files.hdf5 import read_tensors, write_tensors
from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Stage
from tests.checkpoint.conftest import STOP_AT_ONCE, Run
from tests.engine.small import records, weights, write_toml

CARRY = {
    "objective": torch.tensor([0.1, 3.0], dtype=torch.float64),
    "layer0.gram": torch.arange(6.0).reshape(2, 3).t(),
    "rows": torch.tensor(7.0),
}


def stage() -> Stage:
    def optimizer(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    return Stage(0, 1, nn.Sequential(nn.Linear(2, 3)), ((2,), (3,)), optimizer)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_a_carry_comes_back_from_the_file(tmp_path: Path) -> None:
    saved, loaded = stage(), stage()
    saved.carry = Carry(dict(CARRY))
    write_tensors(tmp_path / "stage.h5", stage_tensors(saved), {})
    load_stage(loaded, read_tensors(tmp_path / "stage.h5")[0])
    assert same(loaded.carry, CARRY)
    assert same(loaded.state(), saved.state())


def test_what_was_carried_before_is_forgotten() -> None:
    saved, loaded = stage(), stage()
    saved.carry, loaded.carry = Carry(dict(CARRY)), Carry({"stale": torch.zeros(1)})
    load_stage(loaded, stage_tensors(saved))
    assert same(loaded.carry, CARRY)


def test_a_checkpoint_without_a_carry_leaves_none() -> None:
    loaded = stage()
    loaded.carry = Carry(dict(CARRY))
    load_stage(loaded, stage_tensors(stage()))
    assert loaded.carry == {}


class Late(nn.Module):
    """Has a buffer from its first pass on, of a type that may change."""

    def __init__(self, seen: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", seen, persistent=False)


@pytest.mark.parametrize("before", [None, torch.zeros(3), torch.zeros(2, dtype=torch.float64), torch.zeros(2)])
def test_a_buffer_that_training_has_made_comes_back(before: torch.Tensor | None) -> None:
    blocks, seen = nn.Sequential(Late(before)), torch.tensor([3.0, 4.0])
    load_weights(blocks, {"0.weight": torch.ones(2)}, {"0.seen": seen})
    assert blocks.get_buffer("0.seen").dtype == seen.dtype
    assert torch.equal(blocks.get_buffer("0.seen"), seen)


# ------------------------------------------------------------------------------------------------ whole runs

PDADMM = {
    "data__augment": False,
    "model__name": "mlp",
    "model__depth": 4,
    "model__width": 8,
    "method__name": "pdadmm",
    "method__grow": [2, 4],
    "method__grow_every": 2,
    "schedule__ratio": "0:1",
    "schedule__warmup": 0,  # PP PPP: the variables start anew after epoch 2
    "split__cuts": [2],
    "data__batch_size": 40,
}


def carried(run: Run, epochs_done: int) -> list[float]:
    folder = run.checkpoints / f"epoch-{epochs_done:04d}-step-000000"
    return read_tensors(folder / "stage-001.h5")[0]["carry/objective"].tolist()


def test_a_layer_wise_run_stopped_after_every_epoch_ends_with_the_same_weights(tmp_path: Path) -> None:
    toml = write_toml(tmp_path / "c.toml", 2, **PDADMM, checkpoint__aux="keep")
    whole, parts = Run(toml, tmp_path / "whole"), Run(toml, tmp_path / "parts")
    assert whole.go() == 0
    assert [parts.go(*STOP_AT_ONCE) for _ in range(5)] == [75, 75, 75, 75, 0]
    assert weights(parts.folder) == weights(whole.folder)
    assert carried(parts, 5) == carried(whole, 5)
    assert [r["refresh_s"] > 0 for r in records(parts.folder)] == [True, False, True, False, False]
    assert not any(r["recomputed"] for r in records(parts.folder))


def test_the_objective_that_the_next_one_is_compared_with_is_in_the_checkpoint(tmp_path: Path) -> None:
    run = Run(write_toml(tmp_path / "c.toml", 2, **PDADMM), tmp_path / "run")
    assert [run.go(*STOP_AT_ONCE) for _ in range(2)] == [75, 75]
    assert carried(run, 2)[0] == records(run.folder)[1]["terms"]["objective"]
