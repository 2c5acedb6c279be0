"""Accuracy of the whole network by a serial forward pass, once more after re-estimating BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from hpcsplit.engine.forward import forward_pass
from hpcsplit.engine.job import Job
from hpcsplit.schedule.actions import Phase
from hpcsplit.stage.batchnorm import FreshStatistics
from hpcsplit.tasks.task import Samples
from hpcsplit.wire.port import Share, Verb

BN_BATCHES = 16  # mini-batches of the training set that BatchNorm statistics are re-estimated from


@dataclass(frozen=True)
class Scores:
    """Mean loss and accuracy (fractions 0-1, None for tasks without) of the whole network; the same on every rank.
    All are None after an epoch without an evaluation.  After a parallel one, samples held out are scored with BatchNorm
    statistics re-estimated, as `test_accuracy_bn` is, so that they compare with those after an exact one."""

    loss: float | None = None
    train_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    test_accuracy_bn: float | None = None
    test_accuracy_top5: float | None = None
    test_perplexity: float | None = None
    test_r2: float | None = None
    test_loss_ema: float | None = None
    test_accuracy_ema: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True)
class Outcomes:
    """What the network says of each test sample, in their order: arrays (N,).

    `chance` is the probability that it gives to the class it predicts, `loss` that of the true one in nats.
    """

    labels: np.ndarray
    predicted: np.ndarray
    chance: np.ndarray
    loss: np.ndarray


def evaluate(job: Job, phase: Phase, *, bn: bool) -> Generator[Verb, Any, Scores]:
    """Evaluate on the test set, on the samples held out, and on the first `eval_train_size` training samples, without
    augmentation; with `bn` once more, with BatchNorm statistics re-estimated on images as in the last epoch's
    `phase`."""
    job.where = "evaluation"
    job.stage.blocks.eval()
    trained = yield from _score(job, job.train, job.eval_train_size)
    test = yield from _score(job, job.test, job.test_size)
    averaged = yield from _score_average(job)
    accuracy_bn = test.accuracy if bn else None
    fair = phase == "parallel" and bn and job.batch_norm  # statistics as after an exact epoch
    held_out = _Score() if fair else (yield from _score(job, job.validation, job.validation_size))
    if bn and job.batch_norm:
        forget = job.stage.remember()  # the statistics of other layers, too
        job.stage.blocks.train()
        fresh = FreshStatistics(job.stage)
        order = job.measured()[:BN_BATCHES]
        yield from forward_pass(job, order, lambda step, ids, x, y: None, augment=job.augments(phase))
        job.stage.blocks.eval()
        accuracy_bn = (yield from _score(job, job.test, job.test_size)).accuracy
        if fair:
            held_out = yield from _score(job, job.validation, job.validation_size)
        fresh.restore()
        forget()
    mine = {
        "loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_accuracy_bn": accuracy_bn,
        "test_loss_ema": averaged.loss,
        "test_accuracy_ema": averaged.accuracy,
        **{f"test_{name}": value for name, value in test.figures.items()},
        "validation_loss": held_out.loss,
        "validation_accuracy": held_out.accuracy,
    }
    return Scores(**(yield Share(mine if job.stage.last else None))[-1])


def outputs(job: Job, order: Sequence[np.ndarray]) -> Generator[Verb, Any, torch.Tensor]:
    """Pass these test samples through a stage that is the whole network: (N, *output)."""
    assert job.stage.first
    assert job.stage.last
    parts: list[torch.Tensor] = []
    job.stage.blocks.eval()
    yield from forward_pass(job, order, lambda step, ids, x, y: parts.append(y.float().cpu()), source=job.test)
    return torch.cat(parts)


def outcomes(job: Job) -> Generator[Verb, Any, Outcomes]:
    """What a stage that is the whole network of a classification says of the test set."""
    job.where = "evaluation"
    order = job.in_order(job.test_size)
    logits = yield from outputs(job, order)
    labels = job.test.labels(np.concatenate(order)).cpu()
    chance, predicted = logits.softmax(1).max(1)
    loss = job.stage.task.score(logits, labels)
    return Outcomes(*(each.numpy() for each in (labels, predicted, chance, loss)))


class _Score(NamedTuple):
    """Of a set: mean loss, accuracy where it means something, and more numbers of the task's."""

    loss: float | None = None
    accuracy: float | None = None
    figures: Mapping[str, float] = MappingProxyType({})


def _score_average(job: Job) -> Generator[Verb, Any, _Score]:
    """On the test set with the average of the weights, where there is one."""
    average = job.stage.average
    if not job.averages:
        return _Score()
    job.stage.stand_in = average.weights if average else None
    scores = yield from _score(job, job.test, job.test_size)
    job.stage.stand_in = None
    return scores


def _score(job: Job, source: Samples | None, size: int) -> Generator[Verb, Any, _Score]:
    """Of the first samples, where there are any; meaningful on the last stage only."""
    if source is None:
        return _Score()
    loss_sum, right, seen = 0.0, 0.0, 0
    task, has_accuracy, sums = job.stage.task, True, dict[str, torch.Tensor]()

    def count(step: int, ids: np.ndarray, x: torch.Tensor, y: torch.Tensor) -> None:
        nonlocal loss_sum, right, seen, has_accuracy
        if job.stage.last:
            targets = job.targets(ids, source)
            loss_sum += float(task.score(y, targets).sum())
            correct = task.correct(y, targets)
            has_accuracy = correct is not None
            right += float(correct.sum()) if correct is not None else 0.0
            seen += len(ids)
            for name, values in task.noted(y, targets).items():
                sums[name] = sums.get(name, 0) + values.double().sum(0)

    yield from forward_pass(job, job.in_order(size), count, source=source)
    if not seen:  # on another stage
        return _Score()
    loss = loss_sum / seen
    return _Score(loss, right / seen if has_accuracy else None, task.figures(sums, loss, seen))
