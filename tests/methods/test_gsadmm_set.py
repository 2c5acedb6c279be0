"""gsADMM with `update = "set"`: an epoch of W steps on mini-batches, then p, q and u of all samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.methods.contract import Tally
from hpcsplit.methods.gsadmm import GsAdmm
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Verb
from tests.engine.small import config, make_jobs, one_epoch
from tests.methods.tiny import listen

ALPHA, RHO, TAU = 0.7, 0.4, 3.0
SMALL: dict[str, Any] = {
    "data__limit_train": 90,
    "data__batch_size": 32,  # 32, 32 and 26
    "model__name": "mlp",
    "model__depth": 3,
    "model__width": 16,
    "optim__lr": 0.02,
    "optim__momentum": 0.0,
    "optim__weight_decay": 0.0,
    "store__kind": "memory",
    "method__name": "gsadmm",
    "method__alpha": ALPHA,
    "method__rho": RHO,
    "method__tau_2": TAU,
    "method__backtracking": False,
}
CUTS = {2: [2], 3: [1, 3]}


def refreshed(place: Path, stages: int, update: str, **changes: Any) -> list[Job]:
    options = SMALL | {"split__cuts": CUTS[stages], "method__update": update} | changes
    jobs = make_jobs(config(stages, **options), stages, place)
    lockstep.run([refresh(job, Refresh(0)) for job in jobs])
    return jobs


def epochs(jobs: list[Job], count: int) -> list[Tally]:
    """Tallies of the last of so many parallel epochs."""
    for epoch in range(count):
        tallies = lockstep.run([one_epoch(job, Train(epoch, "parallel", epoch)) for job in jobs])
    return tallies


def rows_of(jobs: list[Job], name: str) -> list[Tensor]:
    everyone = torch.arange(90).numpy()
    found = [job.store.peek(everyone) for job in jobs if job.store]
    return [rows[name].double() for rows in found if name in rows]


def weights_of(jobs: list[Job]) -> list[Tensor]:
    return [w.detach().clone() for job in jobs for w in job.stage.parameters]


def own_terms(nets: Sequence[nn.Module], p: list[Tensor], q: list[Tensor], y: Tensor) -> list[Tensor]:
    """α/2 ‖q − f(p)‖² of each sample and part, R of the last."""
    ends = [net(x) for net, x in zip(nets, p, strict=True)]
    inner = [ALPHA / 2 * (t - x).square().sum(1) for t, x in zip(q, ends[:-1], strict=True)]
    return [*inner, F.cross_entropy(ends[-1], y, reduction="none")]


@pytest.mark.parametrize("stages", [2, 3])
def test_an_epoch_is_the_transcription(tmp_path: Path, stages: int) -> None:
    """Two epochs, so that the second begins with p, q and u apart."""
    jobs = refreshed(tmp_path, stages, "set")
    nets = [copy.deepcopy(nn.Sequential(*job.stage.blocks)).double() for job in jobs]
    everyone = torch.arange(90)
    images, labels = jobs[0].train.images(everyone.numpy()).double(), jobs[-1].train.labels(everyone.numpy())
    p, q, u = ([t.clone() for t in rows_of(jobs, name)] for name in "pqu")
    for epoch in range(2):
        order = jobs[0].epoch_batches(epoch)
        assert [len(ids) for ids in order] == [32, 32, 26]
        for ids in map(torch.from_numpy, order):
            terms = own_terms(nets, [images[ids], *(t[ids] for t in p)], [t[ids] for t in q], labels[ids])
            for net, term in zip(nets, terms, strict=True):
                own = list(net.parameters())
                slopes = torch.autograd.grad(term.mean(), own, retain_graph=True)
                with torch.no_grad():
                    for w, slope in zip(own, slopes, strict=True):
                        w.sub_(jobs[0].learning_rate(epoch) * slope)
        free = [t.requires_grad_() for t in p]
        zero = torch.zeros((), dtype=torch.float64)
        lagrangian = sum((t.sum() for t in own_terms(nets, [images, *free], q, labels)), start=zero)
        for p_next, q_l, u_l in zip(free, q, u, strict=True):
            lagrangian = lagrangian + (u_l * (p_next - q_l)).sum() + RHO / 2 * (p_next - q_l).square().sum()
        p = [x.detach() - g / TAU for x, g in zip(free, torch.autograd.grad(lagrangian, free), strict=True)]
        with torch.no_grad():
            f = [net(x) for net, x in zip(nets[:-1], [images, *p], strict=False)]
        q = [(ALPHA * x + RHO * t + v) / (ALPHA + RHO) for x, t, v in zip(f, p, u, strict=True)]
        u = [v + RHO * (t - x) for v, t, x in zip(u, p, q, strict=True)]

    assert [tally.samples for tally in epochs(jobs, 2)] == [90] * stages  # each once
    torch.testing.assert_close([rows_of(jobs, name) for name in "pqu"], [p, q, u], rtol=1e-4, atol=1e-5)
    wanted = [w.detach() for net in nets for w in net.parameters()]
    torch.testing.assert_close([w.double() for w in weights_of(jobs)], wanted, rtol=1e-4, atol=1e-5)
    assert u[0].abs().max() > 1e-3


def test_mini_batches_and_the_whole_set_part_with_the_first_rows(tmp_path: Path) -> None:
    """An epoch visits a sample once: its W steps see the same rows either way, its p, q and u other weights."""
    batch, whole = (refreshed(tmp_path / update, 2, update) for update in ("batch", "set"))
    for jobs in (batch, whole):
        epochs(jobs, 1)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(batch), weights_of(whole), strict=True))
    for name in "pqu":
        assert (rows_of(batch, name)[0] - rows_of(whole, name)[0]).abs().max() > 1e-4
    for jobs in (batch, whole):
        lockstep.run([one_epoch(job, Train(1, "parallel", 1)) for job in jobs])
    assert not all(torch.equal(a, b) for a, b in zip(weights_of(batch), weights_of(whole), strict=True))


@pytest.mark.parametrize("stages", [2, 3])
def test_with_one_mini_batch_of_all_samples_both_are_the_same(tmp_path: Path, stages: int) -> None:
    batch, whole = (refreshed(tmp_path / update, stages, update, data__batch_size=0) for update in ("batch", "set"))
    tallies = [epochs(jobs, 3) for jobs in (batch, whole)]
    assert all(torch.equal(a, b) for a, b in zip(weights_of(batch), weights_of(whole), strict=True))
    for name in "pqu":
        torch.testing.assert_close(rows_of(batch, name), rows_of(whole, name), rtol=0, atol=0)
    assert tallies[0] == tallies[1]


def test_the_first_sweep_neither_talks_nor_moves_a_row(tmp_path: Path) -> None:
    jobs = refreshed(tmp_path, 3, "set")
    heard: list[Verb] = []
    method = jobs[0].method
    assert isinstance(method, GsAdmm)
    first = method.sweeps()[0]
    ids = jobs[0].epoch_batches(0)[0]
    for k, job in enumerate(jobs):
        aux = {"p": rows_of(jobs, "p")[k - 1][ids].float()} if k else {}
        aux |= {"q": rows_of(jobs, "q")[k][ids].float()} if k < 2 else {}
        [result] = lockstep.run([listen(first(job.stage, aux, job.batch(ids)), heard)])
        assert not result.aux
    assert heard == []
