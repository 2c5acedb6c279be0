"""Timing a stage before the run changes nothing of the run."""

from __future__ import annotations

import pytest
import torch

from hpcsplit import measure
from hpcsplit.measure import rehearse
from tests.engine.conftest import Make


def test_a_rehearsal_leaves_every_stage_as_it_was(make: Make) -> None:
    for job in make(3):
        before = {name: t.clone() for name, t in job.stage.state().items()}
        seconds = rehearse(job.stage, 4)
        assert seconds
        assert seconds > 0
        assert all(torch.equal(t, before[name]) for name, t in job.stage.state().items())
        assert all(p.grad is None for p in job.stage.parameters)


def test_what_does_not_fit_is_not_timed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measure, "_rehearsed", full)
    assert rehearse(make(1)[0].stage, 4) is None
