"""pdADMM against its augmented Lagrangian, one function of all variables of all layers, by autograd in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from layered import (
    SIZE,
    Network,
    Point,
    assert_identical,
    assert_longest_step,
    assert_same_point,
    descended,
    halves,
    newton,
    risk,
    slope,
)
from tiny import batch_for, listen
from torch import Tensor, nn

from hpcsplit.methods.pdadmm import PdAdmm
from hpcsplit.terms.quantise import rounded
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import NEXT, PREV, Recv, Send

RHO, NU = 0.7, 0.3
EXACT: dict[str, Any] = {"tolerance": 1e-12, "fista_steps": 5000}
METHOD = PdAdmm(rho=RHO, nu=NU, **EXACT)


def lagrangian(v: Point) -> Tensor:
    """L_ρ."""
    total = risk(v)
    for j in range(len(v.z)):
        total = total + NU / 2 * v.residual(j).square().sum()
    for j, (q, u) in enumerate(zip(v.q, v.u, strict=True)):
        gap = v.p[j + 1] - q
        total = total + NU / 2 * (q - v.z[j].clamp(min=0)).square().sum()
        total = total + (u * gap).sum() + RHO / 2 * gap.square().sum()
    return total


def of(v: Point, name: str, j: int) -> Callable[[Tensor], Tensor]:
    """L_ρ as a function of one variable."""
    return lambda t: lagrangian(v.put(name, j, t))


def part_of_z(v: Point, j: int) -> Callable[[Tensor], Tensor]:
    """What L_ρ has of each element of a hidden z."""
    a = v.p[j] @ v.w[j].T + v.b[j]
    return lambda z: NU / 2 * ((z - a) ** 2 + (v.q[j] - z.clamp(min=0)) ** 2)


def moved(v: Point, name: str) -> Point:
    """One step of one variable in all layers at once."""
    new = v.copy()
    last = len(v.z) - 1
    for j in range(last + 1):
        match name:
            case "p" if j > 0:
                new.p[j] = descended(of(v, "p", j), v.p[j], rows=True)
            case "w":
                new.w[j] = descended(of(v, "w", j), v.w[j], rows=False)
            case "b":
                new.b[j] = newton(of(v, "b", j), v.b[j])
            case "z" if j < last:
                new.z[j] = halves(part_of_z(v, j), v.z[j])
            case "z":
                new.z[j] = newton(of(v, "z", j), v.z[j])
            case "q" if j < last:
                new.q[j] = newton(of(v, "q", j), v.q[j])
            case "u" if j < last:
                new.u[j] = v.u[j] + RHO * (v.p[j + 1] - v.q[j])
    return new


def after(v: Point, order: str) -> Point:
    for name in order:
        v = moved(v, name)
    return v


# ------------------------------------------------------------------------------------------------ an iteration


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_an_iteration_is_the_transcription_from_any_point(stages: int, blocks: int) -> None:
    network = Network(METHOD, stages, blocks=blocks).randomise()
    before = network.point()
    assert_same_point(network.iterate().point(), after(before, "zqupwb"))


@pytest.mark.parametrize("stages", [1, 3])
def test_from_the_start_it_is_the_printed_order(stages: int) -> None:
    network = Network(METHOD, stages, blocks=2).start()
    printed = network.point()
    assert_same_point(after(printed, "pwb"), printed, rtol=0, atol=1e-14)
    for _ in range(5):
        printed = after(printed, "pwbzqu")
        network.iterate()
        assert network.terms[-1]["objective"] * len(network.x) == pytest.approx(float(lagrangian(printed)), rel=1e-9)
    assert_same_point(network.point(), after(printed, "pwb"))


def test_terms_are_those_of_the_transcription() -> None:
    network = Network(METHOD, 3, blocks=2).randomise()
    before = network.point()
    halfway, end = after(before, "zqu"), after(before, "zqupwb")
    network.iterate()
    gaps = [p - q for p, q in zip(halfway.p[1:], halfway.q, strict=True)]

    def step_sq(*names: str) -> float:
        pairs = [pair for n in names for pair in zip(getattr(end, n), getattr(before, n), strict=True)]
        return sum(float((a - b).square().sum()) for a, b in pairs)

    wanted = {
        "phi": float(risk(halfway)),
        "objective": float(lagrangian(halfway)),
        "residual_sq": sum(float(gap.square().sum()) for gap in gaps),
        "step_sq": step_sq("p", "z", "q"),
        "weights_step_sq": step_sq("w", "b"),
    }
    assert network.terms == [{name: pytest.approx(value / SIZE, rel=1e-8) for name, value in wanted.items()}]


@pytest.mark.parametrize("exchange", ["float32", "float16", "int8"])
def test_the_cuts_change_no_bit(exchange: str) -> None:
    method = PdAdmm(rho=RHO, nu=NU, exchange=exchange)
    one, *others = (
        Network(method, stages, blocks=3, dtype=torch.float32).start().iterate(4).everything()
        for stages in (1, 2, 3, 4)
    )
    for other in others:
        assert_identical(other, one)


def test_a_stage_waits_for_nothing_before_it_has_sent_what_it_has() -> None:
    """Otherwise the stages would compute one after the other."""
    network = Network(METHOD, 3).start()
    heard: list[list[Any]] = [[], [], []]
    both = zip(network.stages, network.rows, strict=True)
    steps = [METHOD.step(stage, rows, batch_for(stage, network.x, network.y)) for stage, rows in both]
    lockstep.run([listen(step, noted) for step, noted in zip(steps, heard, strict=True)])
    middle = [(type(verb), verb.name) for verb in heard[1]]
    assert middle == [(Send, "p0"), (Recv, "p0"), (Send, "q0"), (Send, "u"), (Recv, "q0"), (Recv, "u")]


@pytest.mark.parametrize("exchange", ["float32", "float16", "int8"])
def test_the_start_does_not_depend_on_the_cuts(exchange: str) -> None:
    method = PdAdmm(exchange=exchange)
    one, *others = (Network(method, stages, dtype=torch.float32).start().everything() for stages in (1, 2, 3, 4))
    for other in others:
        assert_identical(other, one)


def test_blocks_of_samples_change_rounding_only() -> None:
    whole = Network(METHOD, 2).start().iterate(5)
    for blocks in (2, 5, 12):
        parts = Network(METHOD, 2, blocks=blocks).start().iterate(5)
        assert_same_point(parts.point(), whole.point(), rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------------------------ each step


@pytest.fixture
def visited() -> tuple[Point, Point]:
    """Any point, and the point one iteration later."""
    network = Network(METHOD, 2, blocks=2).randomise()
    before = network.point()
    return before, network.iterate().point()


def test_backtracking_would_stop_at_the_steps_of_p(visited) -> None:
    before, end = visited
    v = after(before, "zqu")
    for j in range(1, 4):
        for row in range(len(v.y)):

            def f(t: Tensor, j: int = j, row: int = row) -> Tensor:
                return lagrangian(v.put("p", j, torch.cat([v.p[j][:row], t[None], v.p[j][row + 1 :]])))

            assert_longest_step(f, v.p[j][row], end.p[j][row])


def test_backtracking_would_stop_at_the_step_of_w(visited) -> None:
    before, end = visited
    v = after(before, "zqup")
    for j in range(4):
        assert_longest_step(of(v, "w", j), v.w[j], end.w[j])


def test_b_ends_where_its_slope_is_zero(visited) -> None:
    _, end = visited
    for j in range(4):
        assert slope(of(end, "b", j), end.b[j]).abs().max() < 1e-12


def test_no_point_of_a_grid_is_better_than_a_hidden_z(visited) -> None:
    before, end = visited
    grid = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    for j in range(3):
        f = part_of_z(before, j)
        least = torch.stack([f(torch.full_like(end.z[j], float(t))) for t in grid[::8]]).amin(0)
        near = torch.stack([f(end.z[j] + float(t)) for t in grid / 100]).amin(0)
        assert (f(end.z[j]) <= torch.minimum(least, near) + 1e-14).all()


def test_the_last_z_and_every_q_end_where_their_slope_is_zero(visited) -> None:
    before, end = visited
    v = before.copy()
    v.z = end.z
    assert slope(of(v, "z", 3), v.z[3]).norm(dim=1).max() < 1e-11
    v.q = end.q
    for j in range(3):
        assert slope(of(v, "q", j), v.q[j]).abs().max() < 1e-12


def test_u_goes_up_by_rho_times_the_gap(visited) -> None:
    before, end = visited
    for j in range(3):
        torch.testing.assert_close(end.u[j], before.u[j] + RHO * (before.p[j + 1] - end.q[j]), rtol=1e-12, atol=1e-13)


def test_the_last_search_ends_at_the_tolerance(visited) -> None:
    """A loose one leaves a slope of about so much, and no less than a tenth of it."""
    network = Network(PdAdmm(rho=RHO, nu=NU, tolerance=1e-2)).randomise()
    v = network.point()
    v.z[3] = network.iterate().point().z[3]
    assert 1e-3 < slope(of(v, "z", 3), v.z[3]).norm(dim=1).max() <= 1e-2


def test_the_last_search_is_cut_off() -> None:
    v = Network(PdAdmm(rho=RHO, nu=1e-3, tolerance=1e-9, fista_steps=3)).randomise()
    short = v.iterate().point().z[3]
    longer = Network(PdAdmm(rho=RHO, nu=1e-3, tolerance=1e-9, fista_steps=4)).randomise().iterate().point().z[3]
    assert not torch.equal(short, longer)


def test_a_last_z_at_its_minimum_stays() -> None:
    """The search begins there, however loose its tolerance."""
    least = Network(METHOD).randomise().iterate().point().z[3]
    loose = Network(PdAdmm(rho=RHO, nu=NU, tolerance=10.0)).randomise()
    loose.rows[0]["z3"] = least
    torch.testing.assert_close(loose.iterate().point().z[3], least, rtol=0, atol=1e-12)


def test_a_point_where_nothing_pulls_stays() -> None:
    """Every layer fits, p = q = f(z), u = 0, and the labels are certain."""
    network = Network(METHOD, 2).start()
    head = network.stages[-1].blocks[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    network.y = torch.zeros_like(network.y)
    network.start()
    before = network.everything()
    network.iterate(2)
    for name, t in network.everything().items():
        torch.testing.assert_close(t, before[name], rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------ convergence


@pytest.fixture(scope="module")
def descent() -> list[dict[str, float]]:
    """The terms of 200 iterations with ρ = 10 ν."""
    torch.set_num_threads(1)
    return Network(PdAdmm(rho=1.0, nu=0.1, tolerance=1e-10, fista_steps=5000), 2).start().iterate(200).terms


def test_the_objective_falls_in_every_iteration(descent) -> None:
    """0.36 at first, 0.011 after 10 iterations, 0.0016 after 200."""
    objective = [terms["objective"] for terms in descent]
    assert all(later < sooner for sooner, later in pairwise(objective))
    assert objective[9] < 0.05 * objective[0]
    assert 0 < objective[-1] < 0.01 * objective[0]


def test_the_residual_goes_to_zero(descent) -> None:
    """5e-5 in the second iteration, 3e-9 in the last."""
    residual = [terms["residual_sq"] for terms in descent]
    assert max(residual) < 1e-4
    assert max(residual[150:]) < 1e-8


def test_k_times_the_least_squared_step_so_far_goes_down(descent) -> None:
    """The o(1/k) of the paper: 45, 0.14, 0.009 and 0.008 after 1, 10, 100 and 200 iterations."""
    steps = [terms["step_sq"] + terms["weights_step_sq"] for terms in descent]
    k_times_least = [k * min(steps[:k]) for k in (1, 3, 10, 30, 100, 200)]
    assert all(later < sooner for sooner, later in pairwise(k_times_least))
    assert k_times_least[-1] < 0.1 * k_times_least[2]


def test_with_a_rho_far_below_nu_it_rises() -> None:
    """Seen with ρ ≤ ν/10 here, in no iteration with ρ ≥ ν/5; from the fifth iteration on with ν/100."""
    network = Network(PdAdmm(rho=0.01, nu=1.0, tolerance=1e-8, fista_steps=5000), 2).start().iterate(20)
    objective = [terms["objective"] for terms in network.terms]
    assert any(later > sooner for sooner, later in pairwise(objective))


# ------------------------------------------------------------------------------------------------ the end of a run


def verdicts(method: PdAdmm, objectives: list[float]) -> list[str | None]:
    stage = Network(method).stages[0]
    return [method.verdict(stage, {"objective": value}) for value in objectives]


def test_as_many_rises_in_a_row_as_patience_end_the_run() -> None:
    assert [bool(v) for v in verdicts(PdAdmm(patience=2), [3, 4, 5])] == [False, False, True]
    assert [bool(v) for v in verdicts(PdAdmm(patience=1), [3, 2, 2.5])] == [False, False, True]


def test_a_fall_and_a_standstill_begin_the_count_anew() -> None:
    assert not any(verdicts(PdAdmm(patience=2), [3, 4, 3.5, 5, 5, 6, 1, 7]))


def test_the_verdict_names_what_to_change() -> None:
    sentence = verdicts(PdAdmm(rho=1e-3, nu=10.0, patience=3), [1, 2, 3, 4.5])[-1]
    assert sentence == (
        "the augmented Lagrangian has risen 3 times in a row, to 4.5 a sample: "
        "raise method.rho = 0.001 or lower method.nu = 10 (method.patience = 3)"
    )


def test_the_count_of_rises_is_carried() -> None:
    method, stages = PdAdmm(patience=2), Network(PdAdmm(), 2).stages
    assert method.verdict(stages[0], {"objective": 1.0}) is None
    assert method.verdict(stages[0], {"objective": 2.0}) is None
    stages[1].carry = dict(stages[0].carry)
    assert method.verdict(stages[1], {"objective": 3.0})


def test_variables_that_start_anew_are_not_compared_with_the_old_ones() -> None:
    method, network = PdAdmm(patience=1), Network(PdAdmm())
    (stage,) = network.stages
    assert method.verdict(stage, {"objective": 1.0}) is None
    network.start()
    assert method.verdict(stage, {"objective": 2.0}) is None
    assert method.verdict(stage, {"objective": 3.0})


# ------------------------------------------------------------------------------------------------ in fewer bits


@pytest.mark.parametrize(
    ("exchange", "kinds"),
    [
        ("float32", {"p0": torch.float32, "q0": torch.float32}),
        ("float16", {"p0": torch.float16, "q0": torch.float16}),
        ("int8", {"p0": torch.int8, "p1": torch.bfloat16, "q0": torch.int8, "q1": torch.bfloat16}),
    ],
)
def test_messages_have_the_type_of_the_exchange(exchange: str, kinds: dict[str, torch.dtype]) -> None:
    network = Network(PdAdmm(exchange=exchange), 3, dtype=torch.float32).start().iterate()
    sent = {(verb.side, verb.name): verb.tensor.dtype for verb in network.heard if isinstance(verb, Send)}
    assert sent == {(PREV if name[0] == "p" else NEXT, name): kind for name, kind in kinds.items()} | {
        (NEXT, "u"): torch.float32
    }
    assert {verb.name: verb.dtype for verb in network.heard if isinstance(verb, Recv)} == kinds | {"u": torch.float32}
    bytes_of = {(verb.side, verb.name): verb.tensor.element_size() for verb in network.heard if isinstance(verb, Send)}
    declared = sorted((m.side, m.itemsize_bytes) for m in network.method.messages())
    assert declared == sorted((side, bytes_of[side, name]) for side, name in ((PREV, "p0"), (NEXT, "q0"), (NEXT, "u")))


@pytest.mark.parametrize("exchange", ["float16", "int8"])
def test_p_and_q_are_what_a_message_can_hold(exchange: str) -> None:
    network = Network(PdAdmm(rho=RHO, nu=NU, exchange=exchange), 2, dtype=torch.float32).start()
    for _ in range(3):
        rows = {name: t for name, t in network.everything().items() if name[0] in "pq"}
        assert len(rows) == 6
        for name, t in rows.items():
            assert torch.equal(rounded(t, exchange), t), name
        network.iterate()


@pytest.mark.parametrize("exchange", ["float32", "float16", "int8"])
def test_it_starts_with_every_constraint_met(exchange: str) -> None:
    v = Network(PdAdmm(exchange=exchange), 2, dtype=torch.float32).start().point()
    for j in range(4):
        assert v.residual(j).abs().max() < 1e-6
    for p, q in zip(v.p[1:], v.q, strict=True):
        assert torch.equal(p, q)
    assert not any(u.any() for u in v.u)


@pytest.mark.parametrize("exchange", ["float16", "int8"])
def test_b_is_the_minimiser_for_the_rounded_p(exchange: str) -> None:
    v = Network(dataclasses.replace(METHOD, exchange=exchange), 2, blocks=2).start().iterate(3).point()
    for j in range(4):
        assert slope(of(v, "b", j), v.b[j]).abs().max() < 1e-12


def test_fewer_bits_still_learn() -> None:
    """From 0.3585 to 0.00448 in 30 iterations; 0.00448 in float16 and 0.00456 in int8."""
    ends = {}
    for exchange in ("float32", "float16", "int8"):
        network = Network(PdAdmm(rho=1.0, nu=0.1, exchange=exchange), 2, dtype=torch.float32).start().iterate(30)
        ends[exchange] = network.terms[-1]["objective"]
        assert ends[exchange] < 0.02 * network.terms[0]["objective"]
    assert ends["float16"] == pytest.approx(ends["float32"], rel=0.02)
    assert ends["int8"] == pytest.approx(ends["float32"], rel=0.1)
    assert len(set(ends.values())) == 3


# ------------------------------------------------------------------------------------------------ growing


GROWING = PdAdmm(rho=RHO, nu=NU, grow=(1, 2, 3), grow_every=4)


def shallow(network: Network, hidden: int) -> list[nn.Sequential]:
    """The network without its absent layers, in one stage."""
    blocks = [block for stage in network.stages for block in stage.blocks]
    copies = copy.deepcopy([*blocks[:hidden], blocks[-1]])
    for block in copies:
        block._forward_hooks.clear()
    return [nn.Sequential(*copies)]


def test_layers_begin_to_train_phase_by_phase() -> None:
    network = Network(GROWING, 3)
    for epoch, hidden in ((0, 1), (3, 1), (4, 2), (7, 2), (8, 3), (100, 3)):
        taking_part = [part for stage in network.stages for part in GROWING.at(epoch).in_training(stage)]
        assert taking_part == [True] * hidden + [False] * (3 - hidden) + [True]


def test_variables_start_anew_where_layers_are_added() -> None:
    assert [k for k in range(30) if GROWING.restarts(k)] == [4, 8]
    assert not any(METHOD.restarts(k) for k in range(100))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_absent_layers_are_the_identity_and_the_network_a_shallow_one(stages: int) -> None:
    network = Network(GROWING, stages, blocks=2, dtype=torch.float32).start().iterate(4)
    first, second, third, _ = network.layers()
    for absent in (second, third):
        assert torch.equal(absent.weight, torch.eye(4))
        assert not absent.bias.any()
    assert not torch.equal(first.weight, Network(GROWING).layers()[0].weight.float())
    whole = copy.deepcopy(nn.Sequential(*(block for stage in network.stages for block in stage.blocks)))
    assert torch.equal(whole(network.x), shallow(network, 1)[0](network.x))


@pytest.mark.parametrize("exchange", ["float32", "int8"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("hidden", [1, 2])
def test_layers_in_training_move_as_in_the_shallow_network(hidden: int, stages: int, exchange: str) -> None:
    """Bit for bit, with absent layers at the end and at the beginning of a stage and on whole stages."""
    growing = dataclasses.replace(GROWING, exchange=exchange)
    network = Network(growing, stages, blocks=2, dtype=torch.float32).start().iterate(4 * (hidden - 1))
    plain = dataclasses.replace(growing, grow=())
    alone = Network(plain, parts=shallow(network, hidden), blocks=2, dtype=torch.float32).start()
    network.start().iterate(4)
    alone.iterate(4)
    numbers = [*range(hidden), 3]
    small, deep = alone.everything(), network.everything()
    for n, j in enumerate(numbers):
        assert torch.equal(network.layers()[j].weight, alone.layers()[n].weight)
        assert torch.equal(network.layers()[j].bias, alone.layers()[n].bias)
        for name in "pzqu":
            assert (f"{name}{n}" in small) == (f"{name}{j}" in deep)
            if f"{name}{n}" in small:
                assert torch.equal(deep[f"{name}{j}"], small[f"{name}{n}"]), name
    assert network.terms[-4:] == [pytest.approx(terms, rel=1e-6) for terms in alone.terms]


@pytest.mark.parametrize("exchange", ["float32", "int8"])
def test_the_cuts_change_no_bit_of_a_growing_network(exchange: str) -> None:
    method = PdAdmm(rho=RHO, nu=NU, grow=(1, 2, 3), grow_every=2, exchange=exchange)
    one, *others = (
        Network(method, stages, blocks=3, dtype=torch.float32).start().iterate(5).everything()
        for stages in (1, 2, 3, 4)
    )
    for other in others:
        assert_identical(other, one)


def test_added_layers_move_at_last() -> None:
    network = Network(GROWING, 2, dtype=torch.float32).start().iterate(9)
    assert all(not torch.equal(layer.weight, torch.eye(4)) for layer in network.layers()[1:3])


# ------------------------------------------------------------------------------------------------ frozen


def test_frozen_leaves_all_weights_but_those_of_the_last_stage() -> None:
    network = Network(METHOD, 3, blocks=2, frozen=True).start()
    before = network.weights()
    network.iterate(2)
    moved = [not torch.equal(now, old) for now, old in zip(network.weights(), before, strict=True)]
    assert moved == [False] * 6 + [True] * 2
    assert all(not stage.carry for stage in network.stages)


def test_a_step_leaves_the_weights_to_the_end_of_the_pass() -> None:
    network = Network(METHOD, 2, blocks=1).randomise()
    before = network.weights()
    network.visit(METHOD)
    assert all(torch.equal(now, old) for now, old in zip(network.weights(), before, strict=True))
    assert all(stage.carry for stage in network.stages)
    network.iterate()
    assert not any(torch.equal(now, old) for now, old in zip(network.weights(), before, strict=True))
    assert not any(stage.carry for stage in network.stages)
