"""Timing a stage before the run changes nothing of the run."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hpcsplit.assemble import make_jobs
from hpcsplit.commands import train
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.job import Job
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import Tally
from hpcsplit.plan import measure
from hpcsplit.plan.measure import rehearse, rehearse_exact
from hpcsplit.plan.prepare import prepare
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Train
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import World
from tests.engine.conftest import Make
from tests.engine.small import config


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "REHEARSAL_S", 0.0)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_rehearsal_leaves_every_stage_as_it_was(make: Make, microbatches: int) -> None:
    jobs = make(3, schedule__microbatches=microbatches)
    before = [{name: t.clone() for name, t in job.stage.state().items()} for job in jobs]
    for job in jobs:
        assert (rehearse(job.stage, 4) or 0) > 0
    seconds = lockstep.run([rehearse_exact(job, 2) for job in jobs])
    assert min(seconds) > 0
    for job, old in zip(jobs, before, strict=True):
        assert job.stage.state().keys() == old.keys()
        assert all(torch.equal(t, old[name]) for name, t in job.stage.state().items())
        assert all(p.grad is None for p in job.stage.parameters)
        assert job.stage.optimizer is not None
        assert not job.stage.optimizer.state


def test_a_rehearsed_step_takes_as_long_as_what_it_waits_for(make: Make) -> None:
    jobs = make(2)
    jobs[1].stage.between_blocks = lambda: time.sleep(0.02)  # after each block
    least = 0.02 * len(jobs[1].stage.blocks)
    assert all(s > least for s in lockstep.run([rehearse_exact(job, 2) for job in jobs]))


@pytest.mark.parametrize(("whole", "late", "waits"), [(2.0, 1.5, True), (2.0, 2.5, False)])
def test_exact_steps_keep_the_form_that_is_the_quicker_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: float, late: float, waits: bool
) -> None:
    """On the slower of the two ranks: the other one, heard through the world here, needs a second less."""
    setting, (job, _) = Setting(config(2)), make(2)
    told: list[Any] = []

    def rehearsed(job: Job, steps: int) -> Generator[Any, Any, float]:
        assert isinstance(job.exact, Backprop)
        yield from ()
        return late if job.exact.deferred else whole

    monkeypatch.setattr(train, "rehearse_exact", rehearsed)
    monkeypatch.setattr(train, "expect_together", lambda *found: told.append(found[2:]))
    world = SimpleNamespace(count=2, share=lambda value: [value, value - 1.0 if isinstance(value, float) else value])
    world.run = lockstep.run
    train._rehearse(setting, RunDir(tmp_path / "run"), cast(World, world), job)
    assert job.exact == replace(setting.exact, deferred=waits)
    never = Setting(config(2, schedule__deferred=False))
    train._rehearse(never, RunDir(tmp_path / "run"), cast(World, world), job)
    assert told == [({True: late, False: whole}, replace(setting.exact, deferred=waits)), ({False: whole}, never.exact)]


def test_a_process_with_several_stages_waits_for_nobody(make: Make, tmp_path: Path) -> None:
    assert [job.exact.deferred for job in make(2)] == [False, False]
    setting, cpu = Setting(config(2, store__kind="memory")), torch.device("cpu")
    for waits in (True, False):
        prepared = replace(prepare(setting, RunDir(tmp_path / "one"), 2, cpu), deferred=waits)
        (job,) = make_jobs(setting, prepared, RunDir(tmp_path / "one"), [1], cpu)
        assert job.exact == replace(setting.exact, deferred=waits)
        with suppress(StopIteration):  # at the first message
            next(train_epoch(job, Train(0, "serial", 0), Tally()))
        assert job.stage.defers is waits


def test_what_does_not_fit_is_not_timed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError

    stage = make(1)[0].stage
    monkeypatch.setattr(stage, "forward", full)
    assert rehearse(stage, 4) is None
