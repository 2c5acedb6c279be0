"""dlADMM against its augmented Lagrangian, one function of all variables of all layers, by autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcsplit.methods import dladmm
from hpcsplit.methods.dladmm import DlAdmm
from hpcsplit.methods.pdadmm import PdAdmm
from tests.methods import layered
from tests.methods.tiny import batch_for

RHO, NU, LAST = 0.7, 0.3, 3
EXACT: dict[str, Any] = {"tolerance": 1e-12, "fista_steps": 5000}
METHOD = DlAdmm(rho=RHO, nu=NU, **EXACT)
ORDER = [(name, j) for j in range(LAST, -1, -1) for name in ("azbw" if j < LAST else "zbw")]
ORDER += [(name, j) for j in range(LAST + 1) for name in ("wbza" if j < LAST else "wbz")]


def lagrangian(v: layered.Point, rho: float = RHO, nu: float = NU) -> Tensor:
    """L_ρ; a_l is v.p[j + 1]."""
    total = layered.risk(v)
    for j in range(LAST):
        total = total + nu / 2 * v.residual(j).square().sum()
        total = total + nu / 2 * (v.p[j + 1] - v.z[j].clamp(min=0)).square().sum()
    r = v.residual(LAST)
    return total + (v.u[0] * r).sum() + rho / 2 * r.square().sum()


def of(v: layered.Point, name: str, j: int) -> Callable[[Tensor], Tensor]:
    """L_ρ as a function of one variable."""
    return lambda t: lagrangian(v.put(name, j, t))


def part_of_z(v: layered.Point, j: int) -> Callable[[Tensor], Tensor]:
    """What L_ρ has of each element of a hidden z."""
    affine = v.p[j] @ v.w[j].T + v.b[j]
    return lambda z: NU / 2 * ((z - affine) ** 2 + (v.p[j + 1] - z.clamp(min=0)) ** 2)


def moved(v: layered.Point, name: str, j: int) -> layered.Point:
    """One step of one variable of one layer."""
    match name:
        case "w":
            return v.put("w", j, layered.descended(of(v, "w", j), v.w[j], rows=False))
        case "b":
            return v.put("b", j, layered.newton(of(v, "b", j), v.b[j]))
        case "z" if j < LAST:
            return v.put("z", j, layered.halves(part_of_z(v, j), v.z[j]))
        case "z":
            return v.put("z", j, layered.newton(of(v, "z", j), v.z[j]))
        case "a":
            return v.put("p", j + 1, layered.descended(of(v, "p", j + 1), v.p[j + 1], rows=True))
        case "u":
            return v.put("u", 0, v.u[0] + RHO * v.residual(LAST))
    raise AssertionError(name)


def iterated(v: layered.Point) -> layered.Point:
    for name, j in [*ORDER, ("u", LAST)]:
        v = moved(v, name, j)
    return v


class Watched(dladmm.Point):
    """The method's own point, which remembers every step: its name and layer, the point before and after it."""

    seen: list[tuple[str, int, layered.Point, layered.Point]]

    def now(self) -> layered.Point:
        weights = [(layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in self.layers]
        w, b = (list(t) for t in zip(*weights, strict=True))
        return layered.Point(w, b, [self.x, *self.a], list(self.z), [], [self.u], self.y)


def watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, layered.Point, layered.Point]]:
    """All steps that the method takes from now on."""
    seen: list[tuple[str, int, layered.Point, layered.Point]] = []
    for name in "wbza":

        def step(self: Watched, j: int, name: str = name) -> None:
            before = self.now()
            getattr(dladmm_point, f"move_{name}")(self, j)
            seen.append((name, j, before, self.now()))

        setattr(Watched, f"move_{name}", step)
    dladmm_point = dladmm.Point
    monkeypatch.setattr(dladmm, "Point", Watched)
    return seen


# ------------------------------------------------------------------------------------------------ an iteration


@pytest.mark.parametrize("at_random", [True, False])
def test_iterations_are_the_transcription(at_random: bool) -> None:
    network = layered.Network(METHOD)
    v = (network.randomise() if at_random else network.start()).point()
    for _ in range(2):
        v = iterated(v)
        network.iterate()
        layered.assert_same_point(network.point(), v)
        assert network.terms[-1] == {
            "phi": pytest.approx(float(layered.risk(v)) / layered.SIZE, rel=1e-8),
            "objective": pytest.approx(float(lagrangian(v)) / layered.SIZE, rel=1e-8),
            "residual_sq": pytest.approx(float(v.residual(LAST).square().sum()) / layered.SIZE, rel=1e-6, abs=1e-20),
        }


def test_the_order_is_backward_a_z_b_w_then_forward_w_b_z_a(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    layered.Network(METHOD).start().iterate()
    assert [(name, j) for name, j, *_ in seen] == ORDER


def test_it_starts_with_every_constraint_met() -> None:
    v = layered.Network(METHOD).start().point()
    assert all(v.residual(j).abs().max() < 1e-14 for j in range(LAST + 1))
    assert all(torch.equal(a, z.clamp(min=0)) for a, z in zip(v.p[1:], v.z, strict=False))
    assert not v.u[0].any()


# ------------------------------------------------------------------------------------------------ each step


@pytest.mark.parametrize(("rho", "nu"), [(RHO, NU), (1e-4, 1e-4), (10.0, 1e-3), (1e-3, 10.0)])
def test_no_step_but_that_of_u_raises_the_objective(monkeypatch: pytest.MonkeyPatch, rho: float, nu: float) -> None:
    """But for rounding, and at z_L for what the tolerance leaves."""
    seen, tolerance = watch(monkeypatch), 1e-7
    layered.Network(DlAdmm(rho=rho, nu=nu, tolerance=tolerance, fista_steps=20_000)).randomise().iterate(3)
    fell = dict.fromkeys(ORDER, 0)
    for name, j, before, after in seen:
        old, new = (float(lagrangian(v, rho, nu)) for v in (before, after))
        left = layered.SIZE * tolerance**2 / (2 * rho) if (name, j) == ("z", LAST) else 0.0
        assert new <= old + 1e-14 * abs(old) + left, (name, j)
        fell[name, j] += new < old
    assert len(seen) == 3 * len(ORDER)
    assert min(fell.values()) >= 3


def test_backtracking_would_stop_at_the_steps_of_w_and_a(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    layered.Network(METHOD).randomise().iterate()
    for name, j, before, after in seen:
        if name == "w":
            layered.assert_longest_step(of(before, "w", j), before.w[j], after.w[j])
        for row in range(len(before.y)) if name == "a" else ():
            x = before.p[j + 1]

            def f(t: Tensor, v: layered.Point = before, j: int = j, row: int = row, x: Tensor = x) -> Tensor:
                return lagrangian(v.put("p", j + 1, torch.cat([x[:row], t[None], x[row + 1 :]])))

            layered.assert_longest_step(f, x[row], after.p[j + 1][row])


def test_b_and_the_last_z_end_where_their_slope_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(monkeypatch)
    layered.Network(METHOD).randomise().iterate()
    ends = [(name, j, v) for name, j, _, v in seen if name == "b" or (name, j) == ("z", LAST)]
    assert len(ends) == 2 * (LAST + 1) + 2
    for name, j, v in ends:
        assert layered.slope(of(v, name, j), getattr(v, name)[j]).abs().max() < 1e-11


def test_a_last_z_at_its_minimum_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where u/ρ is long and the tolerance loose, a search that began at the centre of the square would end there."""
    network = layered.Network(DlAdmm(rho=1e-6, tolerance=1e-2))
    with torch.no_grad():
        network.layers()[-1].weight.zero_()
        network.layers()[-1].bias.copy_(torch.tensor([6.0, 0.0, 0.0]))
    network.y = torch.zeros_like(network.y)
    v = network.start().point()
    network.rows[0]["u"] = -layered.slope(lambda z: layered.risk(v.put("z", LAST, z)), v.z[LAST])
    seen = watch(monkeypatch)
    network.iterate()
    name, j, before, after = seen[0]
    assert (name, j) == ("z", LAST)
    torch.testing.assert_close(after.z[LAST], before.z[LAST], rtol=0, atol=1e-12)


def test_the_objective_falls_in_every_iteration() -> None:
    """0.625 a sample after the first, 0.101 after five, 0.012 after 40."""
    network = layered.Network(METHOD).start().iterate(40)
    objective = [terms["objective"] for terms in network.terms]
    assert all(later < sooner for sooner, later in pairwise(objective))
    assert objective[-1] < 0.05 * objective[0]


# ------------------------------------------------------------------------------------------------ beside pdADMM


def test_steps_that_pdadmm_has_too_are_the_same() -> None:
    """z from p, W, b and q = a; then W and b from the new p and z; in the last layer with u = 0 and ρ = ν."""
    pd = layered.Network(PdAdmm(rho=RHO, nu=NU, **EXACT)).randomise()
    for j in range(LAST):
        pd.rows[0][f"q{j}"] = pd.rows[0][f"p{j + 1}"]
    method = DlAdmm(rho=NU, nu=NU, **EXACT)
    dl = layered.Network(method)
    v = pd.point()
    end = pd.iterate().point()
    batch = batch_for(dl.stages[0], dl.x, dl.y)

    def own(p: list[Tensor], z: list[Tensor]) -> dladmm.Point:
        rows = {f"z{j}": t for j, t in enumerate(z)} | {f"a{j}": t for j, t in enumerate(p[1:])}
        return dladmm.Point(method, dl.stages[0], rows | {"u": torch.zeros_like(z[-1])}, batch)

    first = own(v.p, v.z)
    for j in range(LAST + 1):
        first.move_z(j)
        torch.testing.assert_close(first.z[j], end.z[j], rtol=1e-9, atol=1e-11)
    second = own(end.p, end.z)
    for j, layer in enumerate(second.layers):
        second.move_w(j)
        second.move_b(j)
        torch.testing.assert_close(layer.weight.detach(), end.w[j], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.bias.detach(), end.b[j], rtol=1e-10, atol=1e-12)
