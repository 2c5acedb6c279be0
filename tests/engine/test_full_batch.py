"""data.batch_size = 0: one step an epoch with all training samples, in pieces that fit the memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hpcsplit.engine import job as job_module
from hpcsplit.engine.evaluate import evaluate
from hpcsplit.engine.rank import rank_program
from hpcsplit.plan.setting import Setting
from hpcsplit.wire import lockstep
from tests.engine.conftest import Make
from tests.engine.small import config, planned

DESCENT: dict[str, Any] = {
    "data__batch_size": 0,
    "data__augment": False,
    "model__name": "mlp",
    "model__depth": 4,
    "model__width": 12,
    "method__name": "backprop",
    "schedule__epochs": 3,
    "optim__lr": 0.05,
    "optim__momentum": 0.0,
    "optim__weight_decay": 0.0,
    "optim__lr_schedule": "constant",
}


@pytest.mark.parametrize(
    ("size", "limit", "samples", "timed"),
    [(0, 1500, 1500, 1024), (0, 100, 100, 100), (48, 100, 48, 48), (1200, 1500, 1200, 1200)],
)
def test_no_batch_size_means_all_training_samples(size: int, limit: int, samples: int, timed: int) -> None:
    setting = Setting(config(data__batch_size=size, data__limit_train=limit))
    assert (setting.batch_size, setting.timed_batch) == (samples, timed)


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (1, 7), (2, 7), (3, 3)])
def test_the_full_batch_is_plain_gradient_descent(make: Make, stages: int, microbatches: int) -> None:
    setting = Setting(config(1, **DESCENT))
    net, data, everyone = setting.network(), setting.data, torch.arange(100)
    source = setting.source(data, data.train, torch.device("cpu"))
    for _ in range(3):
        gradients = torch.autograd.grad(
            F.cross_entropy(net(source.images(everyone)), source.labels(everyone)), list(net.parameters())
        )
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients, strict=True):
                p.sub_(0.05 * g)
    jobs = make(stages, **DESCENT, schedule__microbatches=microbatches)
    assert [len(ids) for ids in jobs[0].epoch_batches(0)] == [100]
    lockstep.run([rank_program(job) for job in jobs])
    for job in jobs:
        for name, t in job.stage.state().items():
            torch.testing.assert_close(t, net.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_forward_passes_take_the_full_batch_in_pieces(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = make(2, data__batch_size=0)
    at_once = lockstep.run([evaluate(job, "serial", bn=False) for job in jobs])[0]
    assert [len(ids) for ids in jobs[0].in_order(2500)] == [100] * 25
    monkeypatch.setattr(job_module, "FORWARD_ROWS", 48)
    assert [len(ids) for ids in jobs[0].in_order(100)] == [48, 48, 4]
    assert [len(ids) for ids in jobs[0].epoch_batches(0)] == [100]
    in_pieces = lockstep.run([evaluate(job, "serial", bn=False) for job in jobs])[0]
    assert (in_pieces.train_accuracy, in_pieces.test_accuracy) == (at_once.train_accuracy, at_once.test_accuracy)
    assert in_pieces.loss == pytest.approx(at_once.loss, rel=1e-5)


@pytest.mark.parametrize("method", ["penalty", "al"])
def test_parallel_epochs_of_the_full_batch(make: Make, method: str) -> None:
    jobs = make(2, data__batch_size=0, method__name=method, store__kind="memory", schedule__epochs=3)
    lockstep.run([rank_program(job) for job in jobs])
    assert all(t.isfinite().all() for job in jobs for t in job.stage.state().values())


def test_the_plan_has_all_training_samples_in_a_mini_batch() -> None:
    full, same = (planned(config(2, data__batch_size=size), 2) for size in (0, 100))
    assert full == same
    assert full["batch_size"] == 100
