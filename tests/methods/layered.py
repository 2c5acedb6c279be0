"""Layer-wise methods seen as one network: their stages driven through iterations, and all variables of all layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.methods.contract import Iterates, TrainingMethod, own_variables
from hpcsplit.wire import lockstep
from tests.methods.tiny import activations, aux_of, batch_for, batch_of, listen, make_stages, mlp_parts, random_rows

SHAPE = (1, 2, 3)
SIZE = 12


@dataclasses.dataclass
class Point:
    """Every variable; the layers count from 0, p[0] = x.  The multiplier of dlADMM is the only one in its u."""

    w: list[Tensor]
    b: list[Tensor]
    p: list[Tensor]
    z: list[Tensor]
    q: list[Tensor]
    u: list[Tensor]
    y: Tensor

    def copy(self) -> Point:
        lists: dict[str, Any] = {f.name: list(getattr(self, f.name)) for f in dataclasses.fields(self)[:-1]}
        return dataclasses.replace(self, **lists)

    def residual(self, j: int) -> Tensor:
        """z − W p − b."""
        return self.z[j] - self.p[j] @ self.w[j].T - self.b[j]

    def put(self, name: str, j: int, value: Tensor) -> Point:
        """Another point, where this one variable has this value."""
        other = self.copy()
        getattr(other, name)[j] = value
        return other


def risk(v: Point) -> Tensor:
    return F.cross_entropy(v.z[-1], v.y, reduction="sum")


# ------------------------------------------------------------------------------------------------ slopes and minimisers


def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def bent(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Tensor:
    """Hg."""
    x = x.detach().clone().requires_grad_()
    (s,) = torch.autograd.grad(f(x), x, create_graph=True)
    return torch.autograd.grad(s, x, g)[0]


def descended(f: Callable[[Tensor], Tensor], x: Tensor, *, rows: bool) -> Tensor:
    """x − g/τ, τ = gᵀHg / ‖g‖² of each row or of the whole; x where nothing pulls."""
    g = slope(f, x)
    h = bent(f, x, g)
    dims = (1,) if rows else tuple(range(x.dim()))
    plain, curved = (g * g).sum(dims, keepdim=True), (g * h).sum(dims, keepdim=True)
    return x - torch.where(plain > 1e-28, plain / curved, 0.0) * g


def newton(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The minimiser of a convex f of all elements of x."""
    for _ in range(60):
        g = slope(f, x)
        if g.abs().max() < 1e-13:
            break
        hessian = torch.autograd.functional.hessian(f, x).reshape(x.numel(), x.numel())
        step = torch.linalg.solve(hessian, g.flatten()).view_as(x)
        scale = 1.0
        while scale > 1e-3 and f(x - scale * step) > f(x):
            scale /= 2
        x = x - scale * step
    return x


def assert_longest_step(f: Callable[[Tensor], Tensor], x: Tensor, new: Tensor) -> None:
    """f(x − s g) ≤ f(x) − s/2 ‖g‖² for the step taken, and for no longer one."""
    g = slope(f, x)
    s = (x - new).norm() / g.norm()
    torch.testing.assert_close(new, x - s * g, rtol=1e-8, atol=1e-12)

    def excess(s: Tensor) -> float:
        return float((f(x - s * g) - f(x)) / (s * g.square().sum()) + 0.5)

    assert excess(s) == pytest.approx(0.0, abs=1e-8)
    assert excess(1.02 * s) > 5e-3


def halves(f: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The minimiser, element by element, of an f that is a quadratic below zero and another one above; f's values are
    those of the elements."""
    ends = []
    for side in (-1.0, 1.0):
        x = torch.full_like(like, side)
        g = slope(lambda t: f(t).sum(), x)
        end = x - g / bent(lambda t: f(t).sum(), x, torch.ones_like(x))
        ends.append(torch.where(end * side > 0, end, 0.0))
    return torch.where(f(ends[0]) < f(ends[1]), ends[0], ends[1])


# ------------------------------------------------------------------------------------------------ the method at work


class Network:
    """The stages of a small feed-forward network with a method's rows, and its iterations in lockstep.

    Args:
        stages: how many; the initial weights do not depend on it.
        blocks: in how many parts an iteration visits the samples.
    """

    def __init__(
        self,
        method: TrainingMethod,
        stages: int = 1,
        *,
        blocks: int = 1,
        depth: int = 3,
        width: int = 4,
        size: int = SIZE,
        dtype: torch.dtype = torch.float64,
        parts: Sequence[nn.Sequential] | None = None,
        **options: Any,
    ) -> None:
        images, self.y = batch_of(SHAPE, size)
        self.x = images.to(dtype)
        whole = mlp_parts(stages, SHAPE, depth=depth, width=width) if parts is None else parts
        self.method, self.epoch = method, 0
        self.stages = make_stages([part.to(dtype) for part in whole], self.x, **options)
        for stage in self.stages:
            if isinstance(method, Iterates):
                method.prepare(stage)
        ends = [round(n * size / blocks) for n in range(blocks + 1)]
        self.blocks = [torch.arange(a, b) for a, b in pairwise(ends)]
        self.rows: list[dict[str, Tensor]] = []
        self.terms: list[dict[str, float]] = []
        self.heard: list[Any] = []

    def start(self) -> Network:
        """The rows as a refresh makes them."""
        self.rows, method = [], self.method.at(self.epoch)
        for stage, x in zip(self.stages, activations([s.blocks for s in self.stages], self.x), strict=False):
            zero = {
                v.name: torch.zeros(len(x), *v.row_shape(stage.place), dtype=stage.wide)
                for v in own_variables(method, stage.place)
                if v.start == "zero"
            }
            self.rows.append({**zero, **method.first_rows(stage, x, torch.empty(0))})
        return self

    def randomise(self) -> Network:
        """Any rows."""
        rows = random_rows(self.method, self.stages, len(self.x))
        self.rows = [aux_of(stage, rows, self.method) for stage in self.stages]
        return self

    def iterate(self, times: int = 1) -> Network:
        """Epochs as the engine goes through them, refreshes included; notes the mean terms of each."""
        for _ in range(times):
            if self.method.restarts(self.epoch):
                self.start()
            method = self.method.at(self.epoch)
            terms = self.visit(method)
            for stage in self.stages:
                closed = method.close(stage) if isinstance(method, Iterates) else {}
                for name, value in closed.items():
                    terms[name] = terms.get(name, 0.0) + value
            self.terms.append({name: value / len(self.x) for name, value in terms.items()})
            self.epoch += 1
        return self

    def visit(self, method: TrainingMethod) -> dict[str, float]:
        """Every block of samples once; the sums of the terms."""
        total: dict[str, float] = {}
        parts: list[list[dict[str, Tensor]]] = [[] for _ in self.stages]
        for ids in self.blocks:
            programs = []
            for stage, rows in zip(self.stages, self.rows, strict=True):
                aux = {name: t[ids] for name, t in rows.items()}
                program = method.step(stage, aux, batch_for(stage, self.x[ids], self.y[ids]))
                programs.append(listen(program, self.heard))
            for stage, result in zip(self.stages, lockstep.run(programs), strict=True):
                parts[stage.index].append(dict(result.aux))
                for name, value in result.tally.terms.items():
                    total[name] = total.get(name, 0.0) + value
        self.rows = [{name: torch.cat([part[name] for part in of]) for name in of[0]} for of in parts]
        return total

    def layers(self) -> list[nn.Linear]:
        return [m for s in self.stages for m in s.blocks.modules() if isinstance(m, nn.Linear)]

    def weights(self) -> list[Tensor]:
        return [t.detach().clone() for layer in self.layers() for t in (layer.weight, layer.bias)]

    def everything(self) -> dict[str, Tensor]:
        """Weights and rows by their names in the whole network, whatever its cuts."""
        found = {f"weight {n}": t for n, t in enumerate(self.weights())}
        for stage, rows in zip(self.stages, self.rows, strict=True):
            found |= {name if name[1:] else f"{name}{stage.block_numbers[0]}": t for name, t in rows.items()}
        return found

    def point(self) -> Point:
        """All variables."""
        rows, layers = self.everything(), self.layers()
        last = len(layers)
        return Point(
            [layer.weight.detach().clone() for layer in layers],
            [layer.bias.detach().clone() for layer in layers],
            [self.x.flatten(1), *(rows[f"p{n}"] if f"p{n}" in rows else rows[f"a{n - 1}"] for n in range(1, last))],
            [rows[f"z{n}"] for n in range(last)],
            [rows[f"q{n}"] for n in range(last - 1) if f"q{n}" in rows],
            [rows[f"u{n}"] for n in range(last) if f"u{n}" in rows],
            self.y,
        )


def assert_same_point(found: Point, wanted: Point, *, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    torch.testing.assert_close(vars(found), vars(wanted), rtol=rtol, atol=atol)
