"""Runs on data of a user's own, with random transforms: the same bits in any number of stages, and after a stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcsplit.plan.setting import Setting
from tests.checkpoint.starts import Course
from tests.engine.small import config, train_here, weights, write_toml

DATA = {
    "data__name": "tests.data.factories:noisy",
    "data__limit_train": 0,
    "data__limit_test": 0,
    "data__batch_size": 6,
}
OWN = {**DATA, "model__name": "tests.data.factories:perceptron", "data__eval_train": 0}


@pytest.mark.parametrize("method", ["penalty", "delayed", "backprop", "chunked"])
def test_any_number_of_stages_sees_the_same_samples(method: str, tmp_path: Path) -> None:
    found = set()
    for cuts in ([], [1], [1, 2]):
        place = tmp_path / str(len(cuts))
        toml = write_toml(
            tmp_path / f"{len(cuts)}.toml",
            len(cuts) + 1,
            **OWN,
            split__cuts=cuts,
            method__name=method,
            run__runner="lockstep",
            schedule__ratio="1:0",
        )
        assert train_here(toml, place) == 0
        found.add(tuple(weights(place)))
    assert len(found) == 1


def test_a_run_that_was_stopped_within_an_epoch_sees_the_same_samples(tmp_path: Path) -> None:
    whole, parted = (Course(tmp_path / name, **OWN, method__name="penalty") for name in ("whole", "parted"))
    whole.start([1])
    parted.start([1], stop=(1, 1))
    parted.start([1])
    assert [r.weights_sha256 for r in parted.records] == [r.weights_sha256 for r in whole.records]


def test_a_batch_is_that_of_plain_torch() -> None:
    setting = Setting(config(1, **OWN))
    source = setting.source(setting.data, setting.data.train, torch.device("cpu"))
    x, y = source.images(np.array([3, 8]), epoch=1, augment=True), source.labels(np.array([3, 8]))
    assert x[:, 0].tolist() == [3.0, 8.0]
    assert y.tolist() == [1, 0]
    assert setting.shapes == [(4,), (8,), (8,), (2,)]
