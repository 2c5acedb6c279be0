"""Evaluation, refresh and the probe against the whole network in one piece, computed by torch alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpcsplit.data.order import batches, epoch_order
from hpcsplit.engine.evaluate import BN_BATCHES, Scores, evaluate
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.engine.probe import Signals, probe
from hpcsplit.methods.penalty import Penalty
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.terms.resample import average
from hpcsplit.wire import lockstep
from tests.engine.conftest import Make
from tests.engine.small import CUTS, one_epoch, store_of
from tests.methods.tiny import gradient_of, statistics_of

BETA = 10.0
EVERYONE = torch.arange(100).numpy()


def everyone(jobs: Sequence[Job], program: Any, *args: Any, **kwargs: Any) -> list[Any]:
    return lockstep.run([program(job, *args, **kwargs) for job in jobs])


@pytest.fixture
def trained(make: Make, request: pytest.FixtureRequest) -> list[Job]:
    """Stages after one exact epoch, so that weights and BatchNorm statistics are not those of the start."""
    jobs = make(getattr(request, "param", 3), store__kind="memory")
    everyone(jobs, one_epoch, Train(0, "serial", 0))
    return jobs


def whole(jobs: Sequence[Job]) -> nn.Sequential:
    """The network in one piece, a copy of the stages' blocks."""
    return copy.deepcopy(nn.Sequential(*(block for job in jobs for block in job.stage.blocks)))


class Relabelled:
    """Test labels of our own, for the last stage."""

    def __init__(self, labels: torch.Tensor) -> None:
        self._labels = labels

    def images(self, ids: Any, *, epoch: int = 0, augment: bool = False) -> torch.Tensor:
        raise AssertionError("the last stage sees no images")

    def labels(self, ids: Any, **view: Any) -> torch.Tensor:
        return self._labels[torch.from_numpy(ids)]


def unhooked(net: nn.Sequential) -> nn.Sequential:
    for block in net:
        block._forward_hooks.clear()
    return net


def everything(jobs: Sequence[Job]) -> list[torch.Tensor]:
    return [t.clone() for job in jobs for t in job.stage.state().values()]


def samples(jobs: Sequence[Job], part: str, ids: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return getattr(jobs[0], part).images(ids), getattr(jobs[-1], part).labels(ids)


def loss_and_accuracy(net: nn.Module, jobs: Sequence[Job], part: str, size: int) -> tuple[float, float]:
    x, y = samples(jobs, part, torch.arange(size).numpy())
    with torch.no_grad():
        logits = net.eval()(x)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())


# ------------------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("trained", [1, 3], indirect=True)
def test_scores_are_those_of_the_whole_network(trained: list[Job]) -> None:
    net = unhooked(whole(trained))
    loss, train_accuracy = loss_and_accuracy(net, trained, "train", 50)
    test_loss, test_accuracy = loss_and_accuracy(net, trained, "test", 60)
    for scores in everyone(trained, evaluate, "parallel", bn=False):
        assert scores.loss == pytest.approx(loss, rel=1e-5)
        assert scores.test_loss == pytest.approx(test_loss, rel=1e-5)
        assert scores.train_accuracy == pytest.approx(train_accuracy)
        assert scores.test_accuracy == pytest.approx(test_accuracy)
        assert scores.test_accuracy_bn is None


def test_statistics_are_re_estimated_as_a_cumulative_mean(trained: list[Job]) -> None:
    """The reference averages batch statistics by hand, layer by layer; what it predicts is made the truth."""
    for job in trained:
        for norm in (m for m in job.stage.blocks.modules() if isinstance(m, nn.BatchNorm2d)):
            mean, var = statistics_of(norm)
            mean.uniform_(-3, 3)
            var.uniform_(0.1, 9)
    net = unhooked(whole(trained))
    seen: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(
            lambda m, args: seen.setdefault(m, []).append((args[0].mean((0, 2, 3)), args[0].var((0, 2, 3))))
        )
    order = batches(epoch_order(0, 0, 100), 32)
    assert len(order) <= BN_BATCHES
    with torch.no_grad():
        for ids in order:
            net.train()(samples(trained, "train", ids)[0])
    for norm in norms:
        means, variances = zip(*seen[norm], strict=True)
        norm.running_mean = torch.stack(means).mean(0)
        norm.running_var = torch.stack(variances).mean(0)
    with torch.no_grad():
        predicted = net.eval()(samples(trained, "test", torch.arange(60).numpy())[0]).argmax(1)
    assert len(predicted.unique()) > 2, "this case cannot tell one network from another"
    trained[-1].test = Relabelled(predicted)
    scores: Scores = everyone(trained, evaluate, "parallel", bn=True)[0]
    assert scores.test_accuracy_bn == 1.0
    assert scores.test_accuracy is not None
    assert scores.test_accuracy < 0.9


def test_evaluation_leaves_no_trace(trained: list[Job]) -> None:
    before = everything(trained)
    everyone(trained, evaluate, "parallel", bn=True)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(trained), strict=True))
    norms = [m for job in trained for m in job.stage.blocks.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}


# ------------------------------------------------------------------------------------------------ refresh


def activations(jobs: Sequence[Job], ids: Any, training: bool) -> list[torch.Tensor]:
    """The input of every stage but the first, from one pass of the whole network."""
    net, found = unhooked(whole(jobs)).train(training), []
    x = samples(jobs, "train", ids)[0]
    with torch.no_grad():
        for i, block in enumerate(net):
            if i in CUTS[len(jobs)]:
                found.append(x)
            x = block(x)
    return found


@pytest.mark.parametrize("factor", [1, 2])
def test_refresh_stores_averaged_activations_in_evaluation_mode(make: Make, factor: int) -> None:
    jobs = make(3, store__kind="memory", method__downsample=factor)
    everyone(jobs, one_epoch, Train(0, "serial", 0))
    everyone(jobs, refresh, Refresh(1))
    ids = torch.arange(100).numpy()
    for job, x in zip(jobs[1:], activations(jobs, ids, training=False), strict=True):
        torch.testing.assert_close(kept(job, ids), average(x, factor), rtol=1e-4, atol=1e-5)


def test_refresh_starts_the_multipliers_at_zero(make: Make) -> None:
    jobs = make(2, store__kind="memory", method__name="al")
    everyone(jobs, refresh, Refresh(1))
    assert not kept(jobs[1], name="kappa").any()


@pytest.mark.parametrize(("factor", "pieces"), [(1, 1), (2, 1), (1, 3)])
def test_an_adjoint_start_is_the_exact_pass_back(make: Make, factor: int, pieces: int) -> None:
    """κ is the mean of each sample's own gradient over a cell, on every stage at once; weights and statistics stay."""
    changes = {"method__start": "adjoint", "method__downsample": factor, "store__kind": "memory"}
    jobs = make(3, method__name="al", schedule__microbatches=pieces, **changes)
    everyone(jobs, one_epoch, Train(0, "serial", 0))
    before = everything(jobs)
    everyone(jobs, refresh, Refresh(1))
    assert all(torch.equal(a, b) for a, b in zip(before, everything(jobs), strict=True))
    edges = [32 * m // pieces for m in range(1, pieces)]
    for ids in (piece for whole in jobs[0].in_order(96) for piece in np.split(whole, edges)):
        exact = zip(activations(jobs, ids, training=True), exact_gradients(jobs, ids), strict=True)
        for job, (x, g) in zip(jobs[1:], exact, strict=True):
            assert job.store is not None
            rows = job.store.peek(ids)
            torch.testing.assert_close(rows["lam"], average(x, factor), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rows["kappa"], average(g, factor), rtol=1e-3, atol=1e-6)


def test_an_adjoint_start_of_the_penalty_method_is_its_own_step_from_there(make: Make) -> None:
    jobs = make(2, method__start="adjoint", method__beta=BETA, store__kind="memory")
    everyone(jobs, refresh, Refresh(1))
    ids = jobs[0].in_order(100)[0]
    [x], [g] = activations(jobs, ids, training=True), exact_gradients(jobs, ids)
    assert jobs[1].store is not None
    expected = x - g * math.prod(x.shape[1:]) / (2 * BETA)
    torch.testing.assert_close(jobs[1].store.peek(ids)["lam"], expected, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------ the probe


def kept(job: Job, ids: Any = EVERYONE, name: str = "lam") -> torch.Tensor:
    """The rows of a variable in the store."""
    return store_of(job).peek(ids)[name]


def store_rows(job: Job, ids: Any, rows: torch.Tensor) -> None:
    """Put these rows for `ids` into the store, and rows of 1 for all other samples."""
    store = store_of(job)
    everyone_else = torch.ones(job.train_size, *rows.shape[1:])
    everyone_else[torch.from_numpy(ids)] = rows
    order = job.in_order(job.train_size)
    store.start(order, read=False)
    for step, batch in enumerate(order):
        store.write(step, {"lam": everyone_else[torch.from_numpy(batch)]})
    store.finish(0)


def exact_gradients(jobs: Sequence[Job], ids: Any) -> list[torch.Tensor]:
    """∂(sum of losses)/∂(input of stage k), k = 1 …, through the whole network in training mode."""
    net = unhooked(whole(jobs)).train()
    inputs: list[torch.Tensor] = []
    x, y = samples(jobs, "train", ids)
    for i, block in enumerate(net):
        if i in CUTS[len(jobs)]:
            x = x.detach().requires_grad_() if not inputs else x
            x.retain_grad()
            inputs.append(x)
        x = block(x)
    F.cross_entropy(x, y, reduction="sum").backward()
    return [gradient_of(t) for t in inputs]


def probed(jobs: Sequence[Job]) -> list[Signals]:
    return everyone(jobs, probe, Train(0, "parallel", 0))


@pytest.mark.parametrize(("factor", "signal"), [(1.0, 1.0), (2.0, 1.0), (-0.5, -1.0)])
def test_the_exact_gradient_gives_signal_and_ratio_one(make: Make, factor: float, signal: float) -> None:
    """With λ = x − f g*/c the method's adjoint c (x − λ) is f times the exact gradient."""
    jobs = make(2, store__kind="memory", method__beta=BETA)
    ids = jobs[0].epoch_batches(0)[0]
    [x], [g] = activations(jobs, ids, training=True), exact_gradients(jobs, ids)
    c = 2 * BETA / math.prod(x.shape[1:])
    store_rows(jobs[1], ids, x - factor * g / c)
    first, last = probed(jobs)
    assert first.label_signal == pytest.approx(signal, abs=1e-3)
    assert first.label_ratio == pytest.approx(abs(factor), rel=1e-3)
    assert first.penalty_signal == pytest.approx(abs(factor) * float(g.norm()), rel=1e-3)
    assert (last.label_signal, last.label_ratio) == (1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beta", [1e2, 1e5])
def test_what_the_type_of_the_rows_rounds_away_is_measured(make: Make, dtype: torch.dtype, beta: float) -> None:
    """The penalty's label is in x - λ, which is the smaller the larger β is."""
    jobs = make(2, store__kind="memory", store__dtype=str(dtype).removeprefix("torch."), method__beta=beta)
    ids = jobs[0].epoch_batches(0)[0]
    [x], [g] = activations(jobs, ids, training=True), exact_gradients(jobs, ids)
    lam = x - g * math.prod(x.shape[1:]) / (2 * beta)
    store_rows(jobs[1], ids, lam)
    lost = lam.to(dtype).float() - lam if dtype != torch.float32 else torch.full_like(lam, 0.0)
    first, last = probed(jobs)
    if dtype == torch.float32:
        assert first.rounding is not None
        assert first.rounding < 1e-2
    else:
        assert first.rounding == pytest.approx(float(lost.norm() / (lam.to(dtype).float() - x).norm()), rel=0.3)
    assert last.rounding is None


def test_signals_and_violations_of_three_stages(make: Make) -> None:
    """Any λ: stage 1 works on its own λ, so its x is not the network's, but the exact gradient is."""
    jobs = make(3, store__kind="memory", method__beta=BETA, method__psi="sum")
    ids = jobs[0].epoch_batches(0)[0]
    x, g = activations(jobs, ids, training=True), exact_gradients(jobs, ids)
    lam = [t + 0.3 * torch.randn(t.shape, generator=torch.Generator().manual_seed(7)) for t in x]
    for job, rows in zip(jobs[1:], lam, strict=True):
        store_rows(job, ids, rows)
    with torch.no_grad():
        local = [x[0], copy.deepcopy(jobs[1].stage.blocks).train()(lam[0])]
    for k, found in enumerate(probed(jobs)[:2]):
        a = 2 * BETA * (local[k] - lam[k])
        assert found.label_signal == pytest.approx(float(F.cosine_similarity(a.flatten(), g[k].flatten(), 0)), abs=1e-4)
        assert found.label_ratio == pytest.approx(float(a.norm() / g[k].norm()), rel=1e-4)
        assert found.violation_next == pytest.approx(float((lam[k] - x[k]).norm() / lam[k].norm()), rel=1e-4)


def test_the_probe_leaves_no_trace(make: Make) -> None:
    jobs = make(3, store__kind="memory")
    everyone(jobs, refresh, Refresh(1))
    everyone(jobs, one_epoch, Train(1, "parallel", 0))
    before = everything(jobs)
    gradients = [None if p.grad is None else p.grad.clone() for job in jobs for p in job.stage.parameters]
    rows = [kept(job) for job in jobs[1:]]
    probed(jobs)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(jobs), strict=True))
    assert any(g is not None for g in gradients)
    for g, p in zip(gradients, (p for job in jobs for p in job.stage.parameters), strict=True):
        assert (g is None) == (p.grad is None)
        assert g is None or torch.equal(g, gradient_of(p))
    for old, job in zip(rows, jobs[1:], strict=True):
        assert torch.equal(old, kept(job))


@pytest.mark.parametrize(("start", "signal"), [("adjoint", 1.0), ("forward", 0.0)])
def test_what_the_next_epoch_begins_anew_is_measured_anew(make: Make, start: str, signal: float) -> None:
    """Not the rows that are thrown away before anybody reads them."""
    jobs = make(2, store__kind="memory")
    for job in jobs:
        job.method = Penalty(refresh_every=1, start=start)
    ids = jobs[0].epoch_batches(0)[0]
    store_rows(jobs[1], ids, activations(jobs, ids, training=True)[0] + exact_gradients(jobs, ids)[0])
    kept, anew = (everyone(jobs, probe, Train(0, "parallel", 0, goes_on=on))[0] for on in (False, True))
    assert kept.label_signal == pytest.approx(-1.0, abs=1e-3)
    assert anew.label_signal == pytest.approx(signal, abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"method__name": "penalty", "method__beta_growth": 3.0},
        {"method__name": "al"},
        {"method__name": "al", "method__downsample": 1, "method__eta_kappa": 0.5},
        {"method__name": "al", "method__eta_kappa_form": "curvature", "method__beta": 10.0},
        {"method__name": "al", "method__start": "adjoint", "method__refresh_every": 1},
    ],
)
def test_the_label_signal_is_the_cosine_of_what_the_next_epoch_descends(make: Make, changes: dict[str, Any]) -> None:
    """One mini-batch is the whole training set, so that the probe has the samples of the next step."""
    jobs = make(2, store__kind="memory", data__limit_train=40, data__batch_size=40, optim__lr=0.02, **changes)
    everyone(jobs, refresh, Refresh(1))
    everyone(jobs, one_epoch, Train(1, "parallel", 0, goes_on=True))
    signals = everyone(jobs, probe, Train(1, "parallel", 0, goes_on=True))[0]
    if "method__refresh_every" in changes:
        everyone(jobs, refresh, Refresh(2))
    ids = jobs[0].epoch_batches(2)[0]
    [exact], descended = exact_gradients(jobs, ids), []

    def note(block: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda g: descended.append(g * len(ids)))

    jobs[0].stage.blocks[-1].register_forward_hook(note)
    everyone(jobs, one_epoch, Train(2, "parallel", 1))
    [used] = descended
    cosine = F.cosine_similarity(used.flatten(), exact.flatten(), 0)
    assert signals.label_signal == pytest.approx(float(cosine), abs=1e-3)
    assert signals.label_ratio == pytest.approx(float(used.norm() / exact.norm()), rel=1e-3)
    assert signals.label_signal > 0.05


def test_before_any_parallel_epoch_there_is_nothing_to_compare(make: Make) -> None:
    found = everyone(make(2, store__kind="memory"), probe, Train(0, "serial", 0))
    assert found[0] == Signals(None, None, None, None)


def test_a_network_at_rest_ends_with_the_exact_gradient(make: Make) -> None:
    """λ settles at x − g(λ)/c, and c (x − λ) at g: the paper's 1/M on the gradient would leave a ratio of 1/32."""
    jobs = make(2, store__kind="memory", method__beta=1e4, optim__lr=1e-12, optim__momentum=0.0)
    everyone(jobs, one_epoch, Train(0, "serial", 0))
    everyone(jobs, refresh, Refresh(1))
    for count in range(3):
        everyone(jobs, one_epoch, Train(0, "parallel", count))  # epoch 0 deals the probe's mini-batch
    found = probed(jobs)[0]
    assert found.label_ratio == pytest.approx(1.0, abs=0.1)
    assert found.label_signal == pytest.approx(1.0, abs=0.05)


# ------------------------------------------------------------------------------------------------ violation


def test_violation_of_an_epoch_is_that_of_the_rows_it_read(make: Make) -> None:
    """With learning rate ~0 stage 0 does not move, so Σ‖λ − x‖² and Σ‖λ‖² can be computed afterwards."""
    jobs = make(2, store__kind="memory", optim__lr=1e-12, optim__momentum=0.0)
    everyone(jobs, refresh, Refresh(1))
    rows = kept(jobs[1])
    tally = everyone(jobs, one_epoch, Train(1, "parallel", 0))[0]
    gap = size = 0.0
    for ids in jobs[0].epoch_batches(1):
        lam, [x] = rows[torch.from_numpy(ids)], activations(jobs, ids, training=True)
        gap, size = gap + float((lam - x).square().sum()), size + float(lam.square().sum())
    assert math.sqrt(tally.gap_sq / tally.aux_sq) == pytest.approx(math.sqrt(gap / size), rel=1e-3)
    assert gap > 0
