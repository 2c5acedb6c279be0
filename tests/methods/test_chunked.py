"""Chunks of mini-batches: what is visited when, and every visit against the same method with rows that are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.methods.chunked import Chunked
from hpcsplit.methods.contract import Batch, StepResult
from hpcsplit.methods.penalty import AugmentedLagrangian, Penalty
from hpcsplit.stage.stage import Stage
from hpcsplit.wire import lockstep
from tests.methods.tiny import activations, batch_for, batch_of, conv_parts, make_stages, weights
from tests.methods.tiny import step as step_with_rows

SHAPE, BETA = (1, 6, 6), 3.0


def visit(method: Chunked, stages: Sequence[Stage], images: Tensor, labels: Tensor, first: int = 0) -> list[StepResult]:
    """One step on the mini-batch whose first sample is number `first`."""

    def seen(stage: Stage) -> Batch:
        given = batch_for(stage, images, labels)
        return Batch(np.arange(first, first + given.size), given.size, given.x, given.y)

    return lockstep.run([method.step(stage, {}, seen(stage)) for stage in stages])


def rows(stage: Stage, first: int = 0) -> dict[str, Tensor]:
    begin = f"stage/chunk/0.{first}/"
    return {name.removeprefix(begin): t for name, t in stage.carry.items() if name.startswith(begin)}


def test_a_chunk_is_taken_forward_once_and_visited_several_times() -> None:
    batches = [np.array([i]) for i in range(13)]
    order = Chunked(chunk=3, visits=2).visiting_order(batches)
    assert [int(b[0]) for b in order] == [*[0, 1, 2] * 3, *[3, 4, 5] * 3]
    uneven = Chunked(chunk=4, visits=2).visiting_order(batches)
    assert [int(b[0]) for b in uneven] == [*[0, 1, 2, 3] * 3, *[4, 5] * 3]
    assert [int(b[0]) for b in Chunked(chunk=8, visits=4).visiting_order(batches[:3])] == [0] * 5


def test_the_first_pass_starts_the_variables_and_changes_nothing() -> None:
    images, labels = batch_of(SHAPE)
    parts = [nn.Sequential(part, nn.BatchNorm2d(2).double()) for part in conv_parts(3, SHAPE)[:2]]
    parts.append(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).double())
    stages = make_stages(parts, images)
    state = [{name: t.clone() for name, t in stage.state().items()} for stage in stages]
    results = visit(Chunked(multiplier=True), stages, images, labels)
    exact = activations([stage.blocks for stage in stages], images)
    for stage, x, before in zip(stages, exact, state, strict=False):
        if not stage.first:
            torch.testing.assert_close(rows(stage)["lam"], x)
            assert not rows(stage)["kappa"].any()
        assert all(torch.equal(t, before[name]) for name, t in stage.state().items())
    assert [result.tally.samples for result in results] == [0, 0, 0]


@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("downsample", [1, 2])
def test_a_visit_is_a_step_of_the_method_with_stored_rows(multiplier: bool, downsample: int) -> None:
    options: dict[str, Any] = {"beta": BETA, "eta_lambda": 0.8, "downsample": downsample}
    al: dict[str, Any] = {"eta_kappa": 0.3, "eta_kappa_form": "curvature"}
    twin = AugmentedLagrangian(**al, **options) if multiplier else Penalty(**options)
    method = Chunked(chunk=2, visits=3, multiplier=multiplier, eta_kappa=0.3, **options)
    parts, chunk = conv_parts(3, SHAPE), [batch_of(SHAPE, 5), batch_of(SHAPE, 7)]
    ours, theirs = make_stages(parts, chunk[0][0], lr=0.05), make_stages(parts, chunk[0][0], lr=0.05)
    stored = []
    for number, (images, labels) in enumerate(chunk):
        visit(method, ours, images, labels, 10 * number)
        stored.append({name: [rows(s, 10 * number).get(name, torch.empty(0)) for s in ours] for name in method.names})
    for _ in range(method.visits):
        for number, (images, labels) in enumerate(chunk):
            results = visit(method, ours, images, labels, 10 * number)
            wanted = step_with_rows(twin, theirs, images, labels, stored[number])
            for result, other in zip(results, wanted, strict=True):
                assert result.tally.terms == other.tally.terms
                assert not result.aux
            for name in method.names:
                stored[number][name] = [result.aux.get(name, torch.empty(0)) for result in wanted]
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=0)


def test_the_second_visit_has_the_exact_gradient_of_the_first() -> None:
    """With a learning rate of 0 and η_λ = 1: λ = x − g/c, and c (x − λ) = g."""
    images, labels = batch_of(SHAPE)
    parts = conv_parts(2, SHAPE)
    stages = make_stages(parts, images, lr=0.0)
    for _ in range(3):
        visit(Chunked(beta=BETA), stages, images, labels)
    F.cross_entropy(nn.Sequential(*parts)(images), labels).backward()
    torch.testing.assert_close([p.grad for p in stages[0].parameters], [p.grad for p in parts[0].parameters()])


def test_only_one_chunk_is_kept() -> None:
    method = Chunked(chunk=2, visits=2)
    stages = make_stages(conv_parts(3, SHAPE), batch_of(SHAPE)[0])
    for batch in method.visiting_order([np.array([10 * i]) for i in range(8)]):
        visit(method, stages, *batch_of(SHAPE), first=int(batch[0]))
        assert len([name for name in stages[1].carry if name.endswith("lam")]) <= 2 + 1  # what was used last
    images, _ = batch_of(SHAPE)
    last = [Batch(batch, len(images), images if s.first else torch.empty(0)) for s in stages]
    used = {s.index: s.carry["stage/chunk/used/lam"].clone() for s in stages[1:]}
    found = lockstep.run([method.made(stage, b) for stage, b in zip(stages, last, strict=True)])
    assert all(
        torch.equal(found[k]["lam"], lam) and torch.equal(found[k - 1]["next_lam"], lam) for k, lam in used.items()
    )
    assert [sorted(aux) for aux in found] == [["next_lam"], ["lam", "next_lam"], ["lam"]]
    assert not any(stage.carry for stage in stages)
