"""pdADMM against its augmented Lagrangian, one function of all variables of all layers, by autograd in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcsplit.methods.pdadmm import PdAdmm
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Recv, Send
from tests.methods import layered
from tests.methods.tiny import batch_for, listen

RHO, NU = 0.7, 0.3
EXACT: dict[str, Any] = {"tolerance": 1e-12, "fista_steps": 5000}
METHOD = PdAdmm(rho=RHO, nu=NU, **EXACT)
Visit = tuple[layered.Point, layered.Point]  # before an iteration and behind it


def lagrangian(v: layered.Point) -> Tensor:
    """L_ρ."""
    total = layered.risk(v)
    for j in range(len(v.z)):
        total = total + NU / 2 * v.residual(j).square().sum()
    for j, (q, u) in enumerate(zip(v.q, v.u, strict=True)):
        gap = v.p[j + 1] - q
        total = total + NU / 2 * (q - v.z[j].clamp(min=0)).square().sum()
        total = total + (u * gap).sum() + RHO / 2 * gap.square().sum()
    return total


def of(v: layered.Point, name: str, j: int) -> Callable[[Tensor], Tensor]:
    """L_ρ as a function of one variable."""
    return lambda t: lagrangian(v.put(name, j, t))


def part_of_z(v: layered.Point, j: int) -> Callable[[Tensor], Tensor]:
    """What L_ρ has of each element of a hidden z."""
    a = v.p[j] @ v.w[j].T + v.b[j]
    return lambda z: NU / 2 * ((z - a) ** 2 + (v.q[j] - z.clamp(min=0)) ** 2)


def moved(v: layered.Point, name: str) -> layered.Point:
    """One step of one variable in all layers at once."""
    new = v.copy()
    last = len(v.z) - 1
    for j in range(last + 1):
        match name:
            case "p" if j > 0:
                new.p[j] = layered.descended(of(v, "p", j), v.p[j], rows=True)
            case "w":
                new.w[j] = layered.descended(of(v, "w", j), v.w[j], rows=False)
            case "b":
                new.b[j] = layered.newton(of(v, "b", j), v.b[j])
            case "z" if j < last:
                new.z[j] = layered.halves(part_of_z(v, j), v.z[j])
            case "z":
                new.z[j] = layered.newton(of(v, "z", j), v.z[j])
            case "q" if j < last:
                new.q[j] = layered.newton(of(v, "q", j), v.q[j])
            case "u" if j < last:
                new.u[j] = v.u[j] + RHO * (v.p[j + 1] - v.q[j])
    return new


def after(v: layered.Point, order: str) -> layered.Point:
    for name in order:
        v = moved(v, name)
    return v


# ------------------------------------------------------------------------------------------------ an iteration


@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_an_iteration_is_the_transcription_from_any_point(stages: int, blocks: int) -> None:
    network = layered.Network(METHOD, stages, blocks=blocks).randomise()
    before = network.point()
    layered.assert_same_point(network.iterate().point(), after(before, "zqupwb"))


@pytest.mark.parametrize("stages", [1, 3])
def test_from_the_start_it_is_the_printed_order(stages: int) -> None:
    network = layered.Network(METHOD, stages, blocks=2).start()
    printed = network.point()
    layered.assert_same_point(after(printed, "pwb"), printed, rtol=0, atol=1e-14)
    for _ in range(5):
        printed = after(printed, "pwbzqu")
        network.iterate()
        assert network.terms[-1]["objective"] * len(network.x) == pytest.approx(float(lagrangian(printed)), rel=1e-9)
    layered.assert_same_point(network.point(), after(printed, "pwb"))


def test_terms_are_those_of_the_transcription() -> None:
    network = layered.Network(METHOD, 3, blocks=2).randomise()
    before = network.point()
    halfway, end = after(before, "zqu"), after(before, "zqupwb")
    network.iterate()
    gaps = [p - q for p, q in zip(halfway.p[1:], halfway.q, strict=True)]

    def step_sq(*names: str) -> float:
        pairs = [pair for n in names for pair in zip(getattr(end, n), getattr(before, n), strict=True)]
        return sum(float((a - b).square().sum()) for a, b in pairs)

    wanted = {
        "phi": float(layered.risk(halfway)),
        "objective": float(lagrangian(halfway)),
        "residual_sq": sum(float(gap.square().sum()) for gap in gaps),
        "step_sq": step_sq("p", "z", "q"),
        "weights_step_sq": step_sq("w", "b"),
    }
    assert network.terms == [{name: pytest.approx(value / layered.SIZE, rel=1e-8) for name, value in wanted.items()}]


@pytest.mark.parametrize("grow", [(), (1, 2, 3)])
@pytest.mark.parametrize("iterations", [0, 5])
@pytest.mark.parametrize("exchange", ["float32", "float16", "int8"])
def test_the_cuts_change_no_bit(exchange: str, iterations: int, grow: tuple[int, ...]) -> None:
    """Neither at the start nor later, of a whole network or of one that grows."""
    method = PdAdmm(rho=RHO, nu=NU, exchange=exchange, grow=grow, grow_every=2)
    one, *others = (
        layered.Network(method, stages, blocks=3, dtype=torch.float32).start().iterate(iterations).everything()
        for stages in (1, 2, 3, 4)
    )
    torch.testing.assert_close(others, [one] * 3, rtol=0, atol=0)


def test_a_stage_waits_for_nothing_before_it_has_sent_what_it_has() -> None:
    """Otherwise the stages would compute one after the other."""
    network = layered.Network(METHOD, 3).start()
    heard: list[list[Any]] = [[], [], []]
    both = zip(network.stages, network.rows, strict=True)
    steps = [METHOD.step(stage, rows, batch_for(stage, network.x, network.y)) for stage, rows in both]
    lockstep.run([listen(step, noted) for step, noted in zip(steps, heard, strict=True)])
    middle = [(type(verb), verb.name) for verb in heard[1]]
    assert middle == [(Send, "p0"), (Recv, "p0"), (Send, "q0"), (Send, "u"), (Recv, "q0"), (Recv, "u")]


def test_blocks_of_samples_change_rounding_only() -> None:
    whole = layered.Network(METHOD, 2).start().iterate(5)
    for blocks in (2, 5, 12):
        parts = layered.Network(METHOD, 2, blocks=blocks).start().iterate(5)
        layered.assert_same_point(parts.point(), whole.point(), rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------------------------ each step


@pytest.fixture
def visited() -> Visit:
    """Any point, and the point one iteration later."""
    network = layered.Network(METHOD, 2, blocks=2).randomise()
    before = network.point()
    return before, network.iterate().point()


def test_backtracking_would_stop_at_the_steps_of_p(visited: Visit) -> None:
    before, end = visited
    v = after(before, "zqu")
    for j in range(1, 4):
        for row in range(len(v.y)):

            def f(t: Tensor, j: int = j, row: int = row) -> Tensor:
                return lagrangian(v.put("p", j, torch.cat([v.p[j][:row], t[None], v.p[j][row + 1 :]])))

            layered.assert_longest_step(f, v.p[j][row], end.p[j][row])


def test_backtracking_would_stop_at_the_step_of_w_and_b_ends_where_its_slope_is_zero(visited: Visit) -> None:
    before, end = visited
    v = after(before, "zqup")
    for j in range(4):
        layered.assert_longest_step(of(v, "w", j), v.w[j], end.w[j])
        assert layered.slope(of(end, "b", j), end.b[j]).abs().max() < 1e-12


@pytest.mark.parametrize("exchange", ["float16", "int8"])
def test_b_is_the_minimiser_for_the_rounded_p(exchange: str) -> None:
    v = layered.Network(dataclasses.replace(METHOD, exchange=exchange), 2, blocks=2).start().iterate(3).point()
    for j in range(4):
        assert layered.slope(of(v, "b", j), v.b[j]).abs().max() < 1e-12


def test_no_point_of_a_grid_is_better_than_a_hidden_z(visited: Visit) -> None:
    before, end = visited
    grid = torch.linspace(-8, 8, 3201, dtype=torch.float64)
    for j in range(3):
        f = part_of_z(before, j)
        least = torch.stack([f(torch.full_like(end.z[j], float(t))) for t in grid[::8]]).amin(0)
        near = torch.stack([f(end.z[j] + float(t)) for t in grid / 100]).amin(0)
        assert (f(end.z[j]) <= torch.minimum(least, near) + 1e-14).all()


def test_the_last_z_and_every_q_end_where_their_slope_is_zero(visited: Visit) -> None:
    before, end = visited
    v = before.copy()
    v.z = end.z
    assert layered.slope(of(v, "z", 3), v.z[3]).norm(dim=1).max() < 1e-11
    v.q = end.q
    for j in range(3):
        assert layered.slope(of(v, "q", j), v.q[j]).abs().max() < 1e-12


def test_u_goes_up_by_rho_times_the_gap(visited: Visit) -> None:
    before, end = visited
    for j in range(3):
        torch.testing.assert_close(end.u[j], before.u[j] + RHO * (before.p[j + 1] - end.q[j]), rtol=1e-12, atol=1e-13)


def test_the_last_search_ends_at_the_tolerance(visited: Visit) -> None:
    """A loose one leaves a slope of about so much, and no less than a tenth of it."""
    network = layered.Network(PdAdmm(rho=RHO, nu=NU, tolerance=1e-2)).randomise()
    v = network.point()
    v.z[3] = network.iterate().point().z[3]
    assert 1e-3 < layered.slope(of(v, "z", 3), v.z[3]).norm(dim=1).max() <= 1e-2


def test_the_last_search_is_cut_off() -> None:
    v = layered.Network(PdAdmm(rho=RHO, nu=1e-3, tolerance=1e-9, fista_steps=3)).randomise()
    short = v.iterate().point().z[3]
    longer = layered.Network(PdAdmm(rho=RHO, nu=1e-3, tolerance=1e-9, fista_steps=4)).randomise().iterate().point().z[3]
    assert not torch.equal(short, longer)


def test_a_last_z_at_its_minimum_stays() -> None:
    """The search begins there, however loose its tolerance."""
    least = layered.Network(METHOD).randomise().iterate().point().z[3]
    loose = layered.Network(PdAdmm(rho=RHO, nu=NU, tolerance=10.0)).randomise()
    loose.rows[0]["z3"] = least
    torch.testing.assert_close(loose.iterate().point().z[3], least, rtol=0, atol=1e-12)


def test_a_point_where_nothing_pulls_stays() -> None:
    """Every layer fits, p = q = f(z), u = 0, and the labels are certain."""
    network = layered.Network(METHOD, 2).start()
    head: Any = network.stages[-1].blocks[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    network.y = torch.zeros_like(network.y)
    network.start()
    before = network.everything()
    network.iterate(2)
    for name, t in network.everything().items():
        torch.testing.assert_close(t, before[name], rtol=0, atol=1e-12)
