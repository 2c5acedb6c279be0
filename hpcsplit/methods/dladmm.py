"""dlADMM: the sequential ancestor of pdADMM, all samples at once in one process; a method to compare with.

Wang, Yu, Chen, Zhao, "ADMM for Efficient Deep Learning with Global Convergence", KDD 2019.  For a feed-forward network
with layer inputs a_{l-1}, a_0 = x, linear outputs z_l, f = ReLU, R the cross-entropy summed over the samples,

    L_ρ = R(z_L; y) + ν/2 Σ_{l<L} [ ‖z_l − W_l a_{l-1} − b_l‖² + ‖a_l − f(z_l)‖² ]
          + ⟨u, z_L − W_L a_{L-1} − b_L⟩ + ρ/2 ‖z_L − W_L a_{L-1} − b_L‖²:

only the last linear constraint is kept, by a multiplier.  With c = ν and m = 0 for l < L, c = ρ and m = u for l = L,
and r_l = z_l − W_l a_{l-1} − b_l, the steps of one layer, each with the newest values of everything else, are

    W_l ← W_l + (1/θ) (c r_l + m)ᵀ a_{l-1}              θ: curvature along the slope, the limit of backtracking
    b_l ← b_l + mean over the samples of r_l + m/c
    z_l ← argmin ‖z − W_l a_{l-1} − b_l‖² + ‖a_l − f(z)‖²          in closed form
    z_L ← argmin R(z) + ρ/2 ‖z − W_L a_{L-1} − b_L + u/ρ‖²         by FISTA
    a_l ← a_l − (1/τ) ( ν (a_l − f(z_l)) − (c r_{l+1} + m) W_{l+1} )     each sample's τ likewise

One iteration: a backward sweep, l = L … 1, in the order a, z, b, W; a forward sweep, l = 1 … L, in the order W, b, z,
a; then u ← u + ρ (z_L − W_L a_{L-1} − b_L).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpcsplit.config.option import option
from hpcsplit.methods.contract import Aux, Batch, Step, StepResult, Tally, TrainingMethod, Variable, method
from hpcsplit.methods.layerwise import input_step, linear, linear_layers, weight_step
from hpcsplit.stage.stage import Place, Stage
from hpcsplit.terms.steps import cross_entropy_minimiser, relu_minimiser

Rows = torch.Tensor


@method("dladmm", full_batch=True, one_batch=True, network="mlp", stages=1)
@dataclass(frozen=True)
class DlAdmm(TrainingMethod):
    """Sequential layer-wise ADMM for feed-forward networks (dlADMM), on one rank; an epoch is one iteration."""

    rho: float = option(1e-6, "coefficient ρ of the last linear constraint", above=0.0)
    nu: float = option(1e-6, "coefficient ν of the distances of z and a from the layer", above=0.0)
    tolerance: float = option(1e-6, "FISTA ends when no sample's slope at z_L is longer", above=0.0)
    fista_steps: int = option(200, "and after so many steps in any case", unit="steps", low=1)

    def variables(self, place: Place) -> tuple[Variable, ...]:
        last = len(place.shapes) - 2
        z = [Variable(f"z{j}", j + 1, "own") for j in range(last + 1)]
        return (*z, *(Variable(f"a{j}", j + 1, "own") for j in range(last)), Variable("u", last + 1, "zero"))

    def first_rows(self, stage: Stage, x: Rows, g: Rows) -> Aux:
        rows, a = {}, x.flatten(1)
        for j, layer in enumerate(linear_layers(stage)):
            rows[f"z{j}"] = linear(layer, a)
            if j + 1 < len(stage.blocks):
                a = rows[f"a{j}"] = rows[f"z{j}"].relu()
        return rows

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        yield from ()  # one stage has nobody to talk to
        point = Point(self, stage, aux, batch)
        end = point.end
        for j in reversed(range(end + 1)):
            if j < end:
                point.move_a(j)
            point.move_z(j)
            point.move_b(j)
            point.move_w(j)
        for j in range(end + 1):
            point.move_w(j)
            point.move_b(j)
            point.move_z(j)
            if j < end:
                point.move_a(j)
        point.u = point.u + self.rho * point.residual(end)
        rows = {f"z{j}": z for j, z in enumerate(point.z)} | {f"a{j}": a for j, a in enumerate(point.a)}
        return StepResult(point.tally(stage), {**rows, "u": point.u})


class Point:
    """All variables of all layers, and the steps of each; layers count from 0."""

    def __init__(self, method: DlAdmm, stage: Stage, aux: Aux, batch: Batch) -> None:
        self.method, self.layers, self.x, self.y = method, linear_layers(stage), batch.x.flatten(1), batch.y
        self.end = len(self.layers) - 1
        self.z = [aux[f"z{j}"] for j in range(self.end + 1)]
        self.a = [aux[f"a{j}"] for j in range(self.end)]
        self.u = aux["u"]

    def coefficient(self, j: int) -> float:
        """c."""
        return self.method.rho if j == self.end else self.method.nu

    def input(self, j: int) -> Rows:
        return self.a[j - 1] if j else self.x

    def residual(self, j: int) -> Rows:
        return self.z[j] - linear(self.layers[j], self.input(j))

    def pull(self, j: int) -> Rows:
        """c r + m."""
        pull = self.coefficient(j) * self.residual(j)
        return pull + self.u if j == self.end else pull

    def move_w(self, j: int) -> None:
        pull, before = self.pull(j), self.input(j)
        self.layers[j].weight.data += weight_step(pull.T @ before, before.T @ before, self.coefficient(j))

    def move_b(self, j: int) -> None:
        self.layers[j].bias.data += self.pull(j).mean(0) / self.coefficient(j)

    def move_z(self, j: int) -> None:
        a = self.z[j] - self.residual(j)
        if j < self.end:
            self.z[j] = relu_minimiser(a, self.a[j])
            return
        m, z = self.method, self.z[j]
        a = a - self.u / m.rho
        best = cross_entropy_minimiser(a, self.y, m.rho, tol=m.tolerance, max_iterations=m.fista_steps, start=z)
        self.z[j] = best.z

    def move_a(self, j: int) -> None:
        nu, after = self.method.nu, self.layers[j + 1]
        slope = nu * (self.a[j] - self.z[j].relu()) - self.pull(j + 1) @ after.weight.detach()
        self.a[j], _ = input_step(self.a[j], slope, after, self.coefficient(j + 1), nu)

    def tally(self, stage: Stage) -> Tally:
        nu, r = self.method.nu, [self.residual(j) for j in range(self.end + 1)]
        phi = float(stage.loss(self.z[-1], self.y).sum())
        squares = sum(float(r_l.square().sum()) for r_l in r[:-1])
        squares += sum(float((a - z.relu()).square().sum()) for a, z in zip(self.a, self.z[:-1], strict=True))
        multiplied = float((self.u * r[-1]).sum() + self.method.rho / 2 * r[-1].square().sum())
        terms = {"phi": phi, "objective": phi + nu / 2 * squares + multiplied}
        return Tally(len(self.x), {**terms, "residual_sq": float(r[-1].square().sum())})
