"""What the plan says an epoch sends is what the record of a run says it has sent."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit.assemble import Around, make_jobs
from hpcsplit.commands.plan import Subject, look_at, plan
from hpcsplit.config import Config
from hpcsplit.config.declared import declared_methods
from hpcsplit.engine.job import Observer
from hpcsplit.engine.rank import rank_program
from hpcsplit.plan.prepare import Prepared
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import EpochRecord
from hpcsplit.wire import lockstep
from tests.engine.small import config

ODD: dict[str, Any] = {  # mini-batches of 16 samples and one of 8
    "data__limit_train": 56,
    "data__limit_test": 8,
    "data__eval_train": 8,
    "data__batch_size": 16,
    "schedule__epochs": 1,
    "schedule__ratio": "0:1",
    "schedule__warmup": 0,
    "store__kind": "memory",
    "checkpoint__every_epochs": 0,
}
LAYERS: dict[str, Any] = {"model__name": "mlp", "model__depth": 3, "model__width": 8}
LAYERS |= {"data__augment": False, "data__batch_size": 0}
LAYER_CUTS = {1: [], 2: [2], 3: [1, 3]}
METHODS: list[dict[str, Any]] = [
    {"name": "backprop"},
    {"name": "penalty"},
    {"name": "penalty", "downsample": 2},
    {"name": "al"},
    {"name": "gsadmm"},
    {"name": "gsadmm", "update": "set"},
    {"name": "gsam"},
    {"name": "delayed"},
    {"name": "delayed", "microbatches": 3, "timetable": "step"},
    {"name": "auxnet"},
    {"name": "auxnet", "downsample": 2, "multiplier": True},
    {"name": "chunked"},
    {"name": "chunked", "downsample": 2, "chunk": 2},
    {"name": "chunked", "visits": 3, "multiplier": True},
    {"name": "pdadmm"},
    {"name": "pdadmm", "exchange": "float16"},
    {"name": "pdadmm", "exchange": "int8"},
    {"name": "pdadmm", "grow": (1, 3)},
]
RUNS: list[dict[str, Any]] = [
    {"method__name": "al", "method__downsample": 2, "store__dtype": "bfloat16", "data__last_batch": "join"},
    {"method__name": "gsadmm", "method__update": "set", "store__dtype": "float16"},
    {"method__name": "chunked", "run__precision": "bfloat16", "data__copies": 2},
    {"method__name": "backprop", "run__precision": "bfloat16", "schedule__microbatches": 3},
    {"method__name": "delayed", "method__epoch_end": "run", "schedule__epochs": 2, "data__last_batch": "drop"},
    {"method__name": "pdadmm", "data__batch_size": 16},
]


class Kept(Observer):
    """Keeps all records."""

    def __init__(self) -> None:
        self.records: list[EpochRecord] = []

    def epoch_done(self, record: EpochRecord) -> None:
        self.records.append(record)


@cache
def network(name: str) -> Subject:
    """What all plans of a network have in common."""
    return look_at(Setting(config(1, **LAYERS if name == "mlp" else {})), RunDir(Path("absent")))


def run(cfg: Config, stages: int, place: Path) -> list[EpochRecord]:
    seen, cpu = Kept(), torch.device("cpu")
    assert isinstance(cfg.split.cuts, tuple)
    prepared = Prepared(cfg.split.cuts, (), "", None)
    jobs = make_jobs(Setting(cfg), prepared, RunDir(place), range(stages), cpu, Around(seen))
    lockstep.run([rank_program(job) for job in jobs])
    return seen.records


def compare(place: Path, stages: int, **changes: Any) -> None:
    """Run the configuration and plan it: the bytes of all epochs, stage by stage."""
    changes = ODD | changes
    if declared_methods()[changes["method__name"]].network == "mlp":
        changes = LAYERS | {"split__cuts": LAYER_CUTS[stages]} | {k: changes[k] for k in changes if k not in LAYERS}
    cfg = config(stages, **changes)
    records = run(cfg, stages, place)
    known = network(cfg.model.name)
    values, _ = plan(replace(known, setting=known.setting.replaced(cfg)), stages)
    expected = [stage["to_next_bytes"] + stage["to_prev_bytes"] for stage in values["stages"]]
    sent = [[stage.sent_bytes or 0 for stage in record.stages] for record in records]
    assert [sum(each) for each in zip(*sent, strict=True)] == [len(records) * each for each in expected]
    assert all(expected) == (stages > 1)


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: " ".join(map(str, method.values())))
def test_of_a_method(tmp_path: Path, method: dict[str, Any], stages: int) -> None:
    compare(tmp_path, stages, **{f"method__{key}": value for key, value in method.items()})


@pytest.mark.parametrize("changes", RUNS, ids=lambda changes: " ".join(map(str, changes.values())))
def test_of_other_types_and_sizes(tmp_path: Path, changes: dict[str, Any]) -> None:
    compare(tmp_path, 3, **changes)


@pytest.mark.parametrize("name", ["penalty", "dladmm"])
def test_one_stage_alone_sends_nothing(tmp_path: Path, name: str) -> None:
    compare(tmp_path, 1, method__name=name)


def test_every_method_is_among_them() -> None:
    alone = {method.name for method in declared_methods().values() if method.stages == 1}
    assert {method["name"] for method in METHODS} == declared_methods().keys() - alone
