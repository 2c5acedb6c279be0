"""Transformers, a network of torchvision and a regression in every method that takes any network, K = 1, 2 and 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcsplit.errors import ConfigError
from hpcsplit.plan.setting import Setting
from tests.checkpoint.starts import Course
from tests.engine.small import config, make_jobs, records, train_here, weights, write_toml
from tests.wire.launch import python

METHODS = ("penalty", "al", "chunked", "delayed", "backprop")
NETWORKS: dict[str, dict[str, Any]] = {
    "gpt": {
        "data__name": "text",
        "data__context": 8,
        "model__name": "gpt-2-16",
        "model__task": "language",
        "optim__name": "adamw",
        "optim__lr": 0.01,
    },
    "vit": {"model__name": "vit-2-16-8", "data__limit_train": 48, "data__limit_test": 16},
    "torchvision": {
        "model__name": "torchvision:resnet18",
        "data__limit_train": 16,
        "data__limit_test": 8,
        "schedule__epochs": 1,
    },
    "regression": {
        "data__name": "arrays",
        "data__validation": 12,
        "model__name": "mlp",
        "model__depth": 3,
        "model__width": 8,
        "model__task": "regression",
        "optim__lr": 0.02,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the data of a network lie."""
    place, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    words = [b"one ", b"two ", b"three ", b"four "]
    (place / "a.txt").write_bytes(b"".join(words[k] for k in rng.integers(0, 4, 140)))
    x = rng.normal(size=(60, 5)).astype(np.float32)
    np.savez(place / "a.npz", x=x, y=(x @ rng.normal(size=(5, 2))).astype(np.float32))
    return {"gpt": str(place / "a.txt"), "regression": str(place / "a.npz")}


def _changes(name: str, data: dict[str, str], **more: Any) -> dict[str, Any]:
    common = {"data__root": data.get(name, ""), "data__limit_train": 0, "data__limit_test": 0, "data__batch_size": 8}
    return {**common, "data__eval_train": 16, "schedule__epochs": 3, **NETWORKS[name], **more}


def _cuts(name: str, stages: int) -> list[int]:
    blocks = (
        len(Setting(config(1, model__name="vit-2-16-8")).net) if name == "vit" else 10 if name == "torchvision" else 4
    )
    return [blocks * k // stages for k in range(1, stages)]


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_epochs_are_the_same_in_any_number_of_stages(name: str, data: dict[str, str], tmp_path: Path) -> None:
    found = []
    for stages in (1, 2, 3):
        course = Course(tmp_path / str(stages), **_changes(name, data, method__name="backprop"))
        assert course.start(_cuts(name, stages))
        found.append([record.weights_sha256 for record in course.records])
        losses = [record.loss for record in course.records]
    assert found[0] == found[1] == found[2]
    if name != "torchvision":  # two steps teach it nothing
        assert losses[-1] is not None
        assert losses[0] is not None
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("method", METHODS[:-1])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "torchvision"])
def test_parallel_epochs_learn_and_go_on_after_a_stop(
    name: str, method: str, stages: int, data: dict[str, str], tmp_path: Path
) -> None:
    whole, parted = (
        Course(
            tmp_path / word,
            **_changes(
                name, data, method__name=method, schedule__ratio="1:2", store__kind="memory", checkpoint__aux="copy"
            ),
        )
        for word in ("whole", "parted")
    )
    whole.start(_cuts(name, stages))
    assert not parted.start(_cuts(name, stages), stop=(1, 2))
    assert parted.start(_cuts(name, stages))
    assert [r.weights_sha256 for r in parted.records] == [r.weights_sha256 for r in whole.records]
    assert [r.phase for r in whole.records] == ["serial", "parallel", "parallel"]
    first, last = whole.records[0].loss, whole.records[-1].loss
    assert first is not None
    assert last is not None
    assert last < 1.05 * first


@pytest.mark.mpi
@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("gpt", "delayed"), ("torchvision", "penalty"), ("regression", "al")])
def test_ranks_are_the_same_as_stages_in_one_process(
    name: str, method: str, data: dict[str, str], tmp_path: Path
) -> None:
    more = {"method__name": method, "schedule__ratio": "1:1", "schedule__epochs": 2, "split__cuts": _cuts(name, 2)}
    toml = write_toml(tmp_path / "a.toml", 2, **_changes(name, data, **more))
    assert train_here(toml, tmp_path / "one") == 0
    ended = python("-m", "hpcsplit", "train", toml, "--run-dir", tmp_path / "two", ranks=2)
    assert ended.code == 0, ended
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    assert records(tmp_path / "two")[-1]["phase"] == "parallel"


def test_a_batch_of_tokens_and_one_of_numbers(data: dict[str, str], tmp_path: Path) -> None:
    for name, kind, target in (("gpt", torch.int64, (8, 8)), ("regression", torch.float32, (8, 2))):
        job = make_jobs(config(1, **_changes(name, data)), 1, tmp_path / name)[0]
        batch = job.batch(np.arange(8))
        assert batch.x.dtype == kind
        assert tuple(batch.y.shape) == target
        assert job.stage.loss(job.stage.infer(batch.x), batch.y).shape == (8,)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("gpt", {"method__name": "al", "method__downsample": 2}, "no cut of this network has one .shapes: 8x16"),
        ("gpt", {"method__name": "auxnet"}, "makes its variables from images or numbers, and text has tokens"),
        ("gpt", {"model__task": "classification"}, "task"),
        ("regression", {"model__task": "classification"}, 'set model.task = "regression"'),
        ("vit", {"model__task": "language"}, "task"),
        ("regression", {"data__pool": True}, "data.pool = true is for the published sets of images"),
        ("regression", {"data__copies": 2}, "copies are other views of a sample, and arrays has none"),
    ],
)
def test_what_does_not_go_together_is_said(
    name: str, more: dict[str, Any], said: str, data: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, Exception), match=said):
        make_jobs(config(2, **_changes(name, data, split__cuts=_cuts(name, 2), **more)), 2, tmp_path / "run")
