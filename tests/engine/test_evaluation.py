"""When the whole network is evaluated, and on what."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hpcsplit.data.dataset import InMemory, fingerprint
from hpcsplit.engine.job import Observer, seen
from hpcsplit.engine.rank import rank_program
from hpcsplit.errors import ConfigError, NumericalError
from hpcsplit.plan.setting import Setting
from hpcsplit.run.records import EpochRecord, StageRecord
from hpcsplit.stage.stage import Stage
from hpcsplit.wire import lockstep
from tests.engine.conftest import Make
from tests.engine.small import config


class Kept(Observer):
    """Keeps all records."""

    def __init__(self) -> None:
        self.past: list[EpochRecord] = []

    def epoch_done(self, record: EpochRecord) -> None:
        self.past.append(record)


def records(make: Make, stages: int, place: str, **changes: Any) -> list[EpochRecord]:
    kept = Kept()
    lockstep.run([rank_program(job) for job in make(stages, kept, place, **changes)])
    return kept.past


def test_which_epochs_are_evaluated(make: Make) -> None:
    (job,) = make(1, run__evaluate_every=3, schedule__epochs=8)
    assert [epoch for epoch in range(8) if job.evaluated(epoch)] == [2, 5, 7]


def test_only_every_so_many_epochs_and_the_last_one_are_evaluated(make: Make) -> None:
    every, second = (records(make, 2, str(n), run__evaluate_every=n) for n in (1, 2))
    assert [r.loss is not None for r in second] == [False, True, False, True, True]
    assert [r.test_accuracy is not None for r in second] == [False, True, False, True, True]
    assert [r.weights_sha256 for r in second] == [r.weights_sha256 for r in every]  # looking changes nothing
    for looked, other in zip(every, second, strict=True):
        if other.loss is not None:
            assert (other.loss, other.test_accuracy) == (looked.loss, looked.test_accuracy)


def test_weights_that_are_no_numbers_are_noticed_without_an_evaluation(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage, "finite", lambda stage: stage.index != 1)
    with pytest.raises(NumericalError, match=r"weights of stage 1 are not finite after epoch 1 \(serial\)"):
        records(make, 3, "run", run__evaluate_every=5)


def test_a_stage_knows_whether_its_weights_are_numbers(make: Make) -> None:
    (job,) = make(1)
    assert job.stage.finite()
    torch.nn.init.constant_(job.stage.parameters[0], math.inf)
    assert not job.stage.finite()


def test_what_is_held_out_is_the_end_of_the_training_samples() -> None:
    whole, parted = Setting(config()).data, Setting(config(data__validation=30)).data
    assert parted.validation
    assert (len(parted.train), len(parted.validation)) == (70, 30)
    first, last = np.arange(70), np.arange(30)
    assert torch.equal(parted.train.inputs(first), whole.train.inputs(first))
    assert torch.equal(parted.validation.targets(last), whole.train.targets(70 + last))
    assert whole.validation is None


def test_the_fingerprint_of_the_images_has_those_held_out() -> None:
    one, other = Setting(config(data__validation=30)).data, Setting(config(data__validation=30)).data
    assert isinstance(other.validation, InMemory)
    assert fingerprint(one) == fingerprint(other)
    other.validation.labels[0] = (other.validation.labels[0] + 1) % 10
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("stages", [1, 3])
def test_what_is_held_out_is_evaluated_and_never_trained_on(make: Make, stages: int) -> None:
    """Training with 30 of 100 samples held out is training on the first 70, normalisation included."""
    held = records(make, stages, "held", data__validation=30)
    short = records(make, stages, "short", data__limit_train=70)
    assert [r.weights_sha256 for r in held] == [r.weights_sha256 for r in short]
    assert all(r.validation_loss is not None and math.isfinite(r.validation_loss) for r in held)
    assert all(0 <= (r.validation_accuracy or 0.0) <= 1 for r in held)
    assert all(r.validation_accuracy is None for r in short)


def test_after_a_parallel_epoch_what_is_held_out_has_batch_norm_re_estimated(make: Make) -> None:
    """With the test set's own samples held out it is the accuracy that is known from there."""
    kept = Kept()
    jobs = make(2, kept, data__validation=30)
    for job in jobs:
        job.validation, job.validation_size = job.test, job.test_size
    lockstep.run([rank_program(job) for job in jobs])
    for record in kept.past:
        same = record.test_accuracy_bn if record.phase == "parallel" else record.test_accuracy
        assert record.validation_accuracy == same
    assert any(r.test_accuracy_bn != r.test_accuracy for r in kept.past if r.phase == "parallel")


@pytest.mark.parametrize("size", [100, 101])
def test_some_must_be_left_to_train_on(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"data.validation = {size} leaves none of 100 training samples"):
        fingerprint(Setting(config(data__validation=size)).data)


@pytest.mark.parametrize(
    "record",
    [
        EpochRecord(0, "serial", validation_loss=math.nan, train_s=2.0, stages=(StageRecord(0, label_signal=1.0),)),
        EpochRecord(
            3,
            "parallel",
            validation_accuracy=0.5,
            train_s=2.0,
            refresh_s=1.0,
            recomputed=True,
            stages=(StageRecord(0, label_signal=math.nan, violation=0.0), StageRecord(1, 0.25, 0.5)),
        ),
    ],
)
def test_the_schedule_sees_the_same_in_memory_and_in_the_file(record: EpochRecord) -> None:
    assert seen(record) == seen(EpochRecord.from_json(record.to_json()))


def test_where_stages_take_turns_a_parallel_epoch_is_as_long_as_the_slowest() -> None:
    stages = tuple(StageRecord(k, compute_s=seconds) for k, seconds in enumerate((1.0, 3.0)))
    exact, parallel = (EpochRecord(0, phase, train_s=9.0, stages=stages) for phase in ("serial", "parallel"))
    assert [seen(r, in_turn=True).seconds for r in (exact, parallel)] == [4.0, 3.0]
    assert [seen(r).seconds for r in (exact, parallel)] == [9.0, 9.0]


@pytest.mark.parametrize(
    ("signals", "work"),
    [
        ([1.0], 1.0),
        ([0.5, 1.0], 0.5),
        ([-0.5, 1.0], 0.0),
        ([0.5, -0.5, 0.25, 1.0], 0.25),
        ([None, 0.5, 1.0], 0.25),  # what has not been measured has not been done
        ([None, 1.0], None),  # the last stage has the label itself, which says nothing of the method
        ([None, math.nan, 1.0], None),
        ([None], None),
        ([], None),
    ],
)
def test_an_epoch_does_the_work_that_its_stages_have_measured(signals: list[float | None], work: float | None) -> None:
    stages = tuple(StageRecord(k, label_signal=signal) for k, signal in enumerate(signals))
    assert seen(EpochRecord(0, "parallel", stages=stages)).work == work
