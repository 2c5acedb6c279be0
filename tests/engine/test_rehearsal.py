"""Timing a stage before the run changes nothing of the run."""

from __future__ import annotations

import time

import pytest
import torch

from hpcsplit.plan import measure
from hpcsplit.plan.measure import rehearse, rehearse_exact
from hpcsplit.wire import lockstep
from tests.engine.conftest import Make


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


def test_what_does_not_fit_is_not_timed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measure, "_rehearsed", full)
    assert rehearse(make(1)[0].stage, 4) is None
