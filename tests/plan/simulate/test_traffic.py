"""What simulated ranks send each other is what a run sends, message by message and byte by byte; what plan counts."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.chunked import Chunked
from hpcsplit.methods.contract import TrainingMethod
from hpcsplit.methods.delayed import Delayed
from hpcsplit.methods.gsadmm import GsAdmm
from hpcsplit.methods.pdadmm import PdAdmm
from hpcsplit.methods.penalty import Penalty
from hpcsplit.plan.blocks import BlockTime
from hpcsplit.plan.profile import CutCost, Profile
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.simulate.dry import Problem
from hpcsplit.plan.simulate.machine import Machine
from hpcsplit.plan.simulate.study import epoch_bytes, replay
from hpcsplit.schedule.actions import Phase, Refresh, Train
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Meter, Traffic, Verb
from tests.engine.small import config, make_jobs, one_epoch

STEPS, BATCH = 6, 16
METHODS: list[dict[str, Any]] = [
    {"method__name": "penalty"},
    {"method__name": "penalty", "method__downsample": 2, "store__dtype": "bfloat16"},
    {"method__name": "al"},
    {"method__name": "gsadmm"},
    {"method__name": "gsam"},
    {"method__name": "delayed"},
    {"method__name": "delayed", "method__microbatches": 4},
    {"method__name": "auxnet"},
]


def sent(job: Job, phase: Phase) -> Generator[Verb, Any, tuple[int, int, int]]:
    def now(traffic: Traffic) -> tuple[int, int, int]:
        return traffic.messages, traffic.sent_bytes_prev, traffic.sent_bytes_next

    if phase == "parallel" and job.has_variables:
        yield from refresh(job, Refresh(0), None)
    before = now((yield Meter()))
    yield from one_epoch(job, Train(0, phase, 0))
    after = now((yield Meter()))
    messages, prev, following = (b - a for a, b in zip(before, after, strict=True))
    return messages, prev, following


def simulated(cfg: Any, stages: int, phase: Phase) -> list[tuple[int, int, int]]:
    setting, m = Setting(cfg), cfg.schedule.microbatches
    blocks = setting.blocks
    times, cut_costs = (BlockTime(1.0, 2.0),) * len(blocks), (CutCost(),) * len(blocks)
    problem = Problem(
        method=setting.method,
        exact=Backprop(m),
        shapes=setting.shapes,
        profile=Profile(times, times, m, cut_costs, (1,) * len(blocks), 0.0, 0.0),
        batch_size=BATCH,
        aux_dtype=setting.store_dtype,
    )
    course = replay(problem, cfg.split.cuts, Machine(), Train(0, phase, 0), STEPS)
    return [(t.messages, t.sent_bytes_prev, t.sent_bytes_next) for t in course.traffic]


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("changes", METHODS, ids=lambda changes: " ".join(map(str, changes.values())))
def test_of_a_parallel_epoch(tmp_path: Path, changes: dict[str, Any], stages: int) -> None:
    cfg = config(stages, data__limit_train=STEPS * BATCH, data__batch_size=BATCH, **changes)
    jobs = make_jobs(cfg, stages, tmp_path / "run")
    assert simulated(cfg, stages, "parallel") == lockstep.run([sent(job, "parallel") for job in jobs])


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_of_an_exact_epoch(tmp_path: Path, stages: int, microbatches: int) -> None:
    cfg = config(stages, data__limit_train=STEPS * BATCH, data__batch_size=BATCH, schedule__microbatches=microbatches)
    jobs = make_jobs(cfg, stages, tmp_path / "run")
    assert simulated(cfg, stages, "serial") == lockstep.run([sent(job, "serial") for job in jobs])


def counted(method: TrainingMethod, shapes: list[tuple[int, ...]], cuts: tuple[int, ...]) -> list[tuple[int, int]]:
    return epoch_bytes(method, shapes, cuts, [40, 40, 7], dtype=torch.float32, aux_dtype=torch.float32)


@pytest.mark.parametrize("kind", [Penalty, GsAdmm, Delayed, Chunked, Backprop])
def test_tensors_without_values_weigh_as_much(kind: type[TrainingMethod]) -> None:
    """As those of a full-batch method are."""
    hollow = type("Hollow", (kind,), {"full_batch": True})
    shapes = [(3, 32, 32), *[(16, 9, 9)] * 4, (10,)]
    assert counted(hollow(), shapes, (2, 3)) == counted(kind(), shapes, (2, 3))


def test_an_epoch_of_layers_that_no_machine_could_hold_is_counted_in_a_moment() -> None:
    width, began = 1_000_000, time.process_time()
    sent = counted(PdAdmm(exchange="float16"), [(3, 32, 32), *[(width,)] * 5, (10,)], (2, 4))
    assert sent == [(0, 6 * 87 * width), (2 * 87 * width, 6 * 87 * width), (2 * 87 * width, 0)]  # p back, q and u on
    assert time.process_time() - began < 1
