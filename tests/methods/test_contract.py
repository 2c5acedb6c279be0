"""What every registered method keeps, whatever its mathematics."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpcsplit.config.declared import DeclaredMethod, declared_methods
from hpcsplit.methods.contract import (
    Aux,
    Batch,
    InFlight,
    Step,
    StepResult,
    Tally,
    TrainingMethod,
    Variable,
    own_variables,
)
from hpcsplit.methods.contract import visits as visiting
from hpcsplit.stage.stage import Place, Stage
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import PREV, Recv, Send, Verb
from tests.methods import tiny

SHAPE = (1, 6, 6)


@pytest.fixture(params=declared_methods())
def declared(request: pytest.FixtureRequest) -> DeclaredMethod:
    return declared_methods()[request.param]


@pytest.fixture
def method(declared: DeclaredMethod) -> TrainingMethod:
    return build(declared)


def build(declared: DeclaredMethod) -> TrainingMethod:
    method: TrainingMethod = getattr(importlib.import_module(declared.module), declared.class_name)()
    return method


def one_step(method: TrainingMethod, stage: Stage, aux: Aux, batch: Batch) -> Step:
    """The last step of a parallel epoch of one mini-batch."""
    result = yield from method.step(stage, aux, batch)
    if isinstance(method, InFlight):
        yield from method.drain(stage, goes_on=False)
    return result


def lead_in(method: TrainingMethod, stages: Sequence[Stage], images: torch.Tensor, labels: torch.Tensor) -> int:
    """The steps before it, of a method that visits a mini-batch more than once; how many of them train."""
    visits = visiting(method, [np.arange(len(images))])[1:]
    runs = [
        lockstep.run([method.step(s, {}, tiny.batch_for(s, images, labels, method)) for s in stages]) for _ in visits
    ]
    return sum(results[0].tally.samples > 0 for results in runs)


@pytest.mark.parametrize("name", [d.name for d in declared_methods().values() if not d.full_batch])
def test_one_stage_is_the_plain_optimizer_bit_for_bit(name: str) -> None:
    method = build(declared_methods()[name])
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    whole = copy.deepcopy(net)
    images, labels = tiny.batch_of(SHAPE, size=7, dtype=torch.float32)
    (stage,) = tiny.make_stages([net], images, lr=0.05, clip=0.5)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(4):
        stage.at(epoch, 0)
        steps = 1 + lead_in(method, [stage], images, labels)
        lockstep.run([one_step(method, stage, {}, tiny.batch_for(stage, images, labels, method))])
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(whole(images), labels).backward()
            nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
            optimizer.step()
    for mine, plain in zip(stage.state().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(mine, plain)


def test_a_step_only_talks_and_returns_rows_for_its_own_variables_only(
    declared: DeclaredMethod, method: TrainingMethod
) -> None:
    """Every message has a row for each sample: the plan's traffic rests on it."""
    images, labels = tiny.batch_of(SHAPE)
    stages = tiny.make_stages(tiny.parts_for(declared, SHAPE), images)
    rows = tiny.random_rows(method, stages, len(images))
    lead_in(method, stages, images, labels)
    heard: list[Verb] = []
    programs = [
        one_step(method, s, tiny.aux_of(s, rows, method), tiny.batch_for(s, images, labels, method)) for s in stages
    ]
    results = lockstep.run([tiny.listen(program, heard) for program in programs])
    assert bool(heard) == (len(stages) > 1)
    assert all(isinstance(verb, Send | Recv) for verb in heard)
    assert {len(verb.tensor) for verb in heard if isinstance(verb, Send)} <= {len(images)}
    for stage, result in zip(stages, results, strict=True):
        assert isinstance(result, StepResult)
        own = {v.name: v.row_shape(stage.place) for v in own_variables(method, stage.place)}
        assert {name: tuple(t.shape[1:]) for name, t in result.aux.items()} == own
        assert not any(t.requires_grad for t in result.aux.values())


def test_a_step_writes_nothing_but_weights(declared: DeclaredMethod, method: TrainingMethod) -> None:
    """Not even those but by the optimizer, where the method uses it."""
    images, labels = tiny.batch_of(SHAPE)
    stages = tiny.make_stages(tiny.parts_for(declared, SHAPE), images, lr=0.0, momentum=0.0)
    rows = tiny.random_rows(method, stages, len(images))
    lead_in(method, stages, images, labels)
    given = [tiny.aux_of(s, rows, method) for s in stages]
    kept = copy.deepcopy((given, images, labels, tiny.weights(stages)))
    lockstep.run(
        [one_step(method, s, a, tiny.batch_for(s, images, labels, method)) for s, a in zip(stages, given, strict=True)]
    )
    now = (given, images, labels, tiny.weights(stages))
    torch.testing.assert_close(now[:3], kept[:3], rtol=0, atol=0)
    if not declared.full_batch:
        torch.testing.assert_close(now[3], kept[3], rtol=0, atol=0)


def test_the_rows_of_a_start_are_those_of_the_variables_that_start_on_their_own(
    declared: DeclaredMethod, method: TrainingMethod
) -> None:
    images, _ = tiny.batch_of(SHAPE)
    for stage in tiny.make_stages(tiny.parts_for(declared, SHAPE), images):
        x = torch.randn(len(images), *stage.in_shape, dtype=torch.float64)
        rows = method.first_rows(stage, x, torch.empty(0))
        own = {v.name: v.row_shape(stage.place) for v in own_variables(method, stage.place) if v.start == "own"}
        assert {name: tuple(t.shape[1:]) for name, t in rows.items()} == own
        assert not any(t.requires_grad for t in rows.values())


def test_a_variable_lives_on_the_stages_that_have_its_boundary_in_its_shape() -> None:
    stages = tiny.make_stages(tiny.conv_parts(3, SHAPE), tiny.batch_of(SHAPE)[0])
    assert [Variable("a", "input", "zero").on(s.place) for s in stages] == [False, True, True]
    assert [Variable("a", "output", "zero").on(s.place) for s in stages] == [True, True, False]
    assert [Variable("a", 1, "zero").on(s.place) for s in stages] == [True, True, True]
    place = Place(first=False, last=False, shapes=((2, 7, 7), (3,), (5,)), first_block=1)
    assert Variable("a", "input", "zero").row_shape(place) == (2, 7, 7)
    assert Variable("a", "output", "zero").row_shape(place) == (5,)
    assert Variable("a", 1, "own").row_shape(place) == (3,)
    assert Variable("a", "input", "zero", factor=2).row_shape(place) == (2, 4, 4)


def test_start_rows_are_the_averaged_activation_in_float32() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4).bfloat16()
    rows = Variable("lam", "input", "forward", PREV, 2).start_rows(x)
    assert rows.dtype == torch.float32
    assert rows.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]


def test_tallies_add_up() -> None:
    total = Tally(3, {"phi": 1.0}, 2.0, 4.0)
    total.add(Tally(2, {"phi": 0.5, "psi": 7.0}, 1.0, 1.0))
    assert total == Tally(5, {"phi": 1.5, "psi": 7.0}, 3.0, 5.0)
