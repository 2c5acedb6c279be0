"""Runs that several tests look at are made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.small import Weights, train_here, weights, write_toml
from tests.wire.launch import ROOT, Ended, python

Uninterrupted = Callable[[str, int], Weights]
RECIPE = {"optim__lr_schedule": "linear", "optim__lr_steps": "step", "optim__lr_warmup": 1.5, "optim__mixup": 0.4}
RECIPE |= {"optim__cutmix": 1.0, "optim__label_smoothing": 0.1, "optim__decay_norms": False}
METHODS: dict[str, dict[str, Any]] = {
    "penalty": {"method__name": "penalty"},
    "al": {"method__name": "al", "method__downsample": 2, "checkpoint__aux": "copy"},
    "backprop": {"method__name": "backprop", "schedule__microbatches": 3},
    "deferred": {"method__name": "backprop", "schedule__microbatches": 3, "schedule__deferred": True},
    "delayed": {"method__name": "delayed", "schedule__ratio": "1:2"},
    "delayed-pieces": {"method__name": "delayed", "schedule__ratio": "1:2", "method__microbatches": 3},
    "chunked": {"method__name": "chunked", "method__chunk": 2, "method__visits": 2, "method__downsample": 2},
    "recipe": {"method__name": "penalty", **RECIPE, "optim__nesterov": True, "optim__accumulate": 2},
    "delayed-recipe": {"method__name": "delayed", "schedule__ratio": "1:2", **RECIPE},
    "auxnet": {"method__name": "auxnet", "method__aux_warmup": 3, "method__downsample": 2},
}


@dataclass(frozen=True)
class Finished:
    """A run over MPI with the command as users give it, its standard output in a file."""

    toml: Path
    folder: Path
    ended: Ended


@pytest.fixture(scope="session")
def mpi_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = tmp_path_factory.mktemp("mpi-run")
    toml = write_toml(place / "small.toml", 2, **METHODS["penalty"])
    words = ["-m", "hpcsplit", "train", toml, "--run-dir", place / "run"]
    ended = python(*words, ranks=2, out=place / "out", PYTHONPATH=str(ROOT))  # as it is, compiler included
    return Finished(toml, place / "run", ended)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """uninterrupted(method, stages): the weights of every epoch, all stages in one process and rows in memory."""
    known: dict[tuple[str, int], Weights] = {}

    def get(method: str, stages: int) -> Weights:
        if (method, stages) not in known:
            place = tmp_path_factory.mktemp(f"{method}-{stages}")
            toml = write_toml(place / "c.toml", stages, **METHODS[method], store__kind="memory")
            assert train_here(toml, place / "run", "--checkpoint.every_epochs", 0) == 0
            known[method, stages] = weights(place / "run")
        return known[method, stages]

    return get
