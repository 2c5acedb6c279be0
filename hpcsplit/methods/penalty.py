"""Penalty and augmented Lagrangian with downsampling: DS-SPH, Algorithm 1 and eqs. (8), (19), (25)-(30).

Sun et al., "A Practical Layer-Parallel Training Algorithm for Residual Networks".  Per sample

    L = φ(x^{K-1}; y) + Σ_{k≥1} [ β ψ(λ_k, x^{k-1}) − ⟨κ_k, λ_k − x^{k-1}⟩ ],     x^k = f_k(λ_k),   λ_k = US(Λ_k).

With c the curvature of β ψ in the stored variable, m pixels in a cell, g = ∂(local loss)/∂Λ of the sample alone:

    weights   descend the batch mean of  β ψ(λ_{k+1}, x^k) + ⟨κ_{k+1}, x^k⟩,  the last stage of  φ        (28)

The penalty method, and the augmented Lagrangian with `eta_kappa_form` = "curvature" or "printed":

    Λ_k  ←  Λ_k − (η_λ / c) ( c (Λ_k − avg x^{k-1}) + g − m Κ_k )                                        (29)
    Κ_k  ←  Κ_k − η_κ (c / m) (Λ_k^new − avg x^{k-1}),   or  η_κ / (2β)  in place of  η_κ c / m           (30)

They carry the label in the displacement Λ − avg x = −(g − m Κ) / c.  So it leaks: stage k trains on an input that holds
its own answer, the more the smaller c is; where the curvature of the loss in λ exceeds c, η_λ = 1 has a period of two;
and a large c makes the displacement so small that half precision rounds it away.  No β is right.

`eta_kappa_form = "stationary"`, the default, takes the multiplier from stationarity in λ, eq. (19),
g + c (Λ − avg x) − m Κ = 0, at the feasible point: the first-order multiplier estimate (Fletcher 1970; Bertsekas,
"Constrained Optimization and Lagrange Multiplier Methods", 1982, section 4.3).  What is left of L in Λ is the penalty:

    Κ_k  ←  Κ_k + η_κ (g / m − Κ_k)
    Λ_k  ←  Λ_k − η_λ (Λ_k − avg x^{k-1})

With both steps 1 this is back-propagation whose features and adjoints at a boundary are one visit old. Λ holds no
label, so nothing leaks; the fixed point satisfies every KKT condition of the split problem, whatever β is; β only
damps how far x may run from where Κ was computed. A step is stable for 0 < η < 2, since Κ follows g and Λ follows x,
and neither moves the other within a visit. Behind a switch (λ = x, κ = 0) stage k of K sees no label for K-1-k
parallel epochs; `start = "adjoint"` takes one step of the above with the exact gradients, from one pass back.

Where the paper disagrees with itself:
  * Algorithm 1 prints the last stage's λ step without β ∂ψ/∂λ; eq. (29) has it for every k ≥ 1, and so has this file.
  * (30) prints the multiplier step as η/(2β); stationarity (19) asks for 2β, i.e. c.  With the printed one the
    multipliers stay about 0 and AL is the penalty method.
  * ψ is printed as a sum of squares, but the reported β = 100 and 10 are stable for the mean over the boundary's
    elements only: `psi = "mean"` is the default; β with the mean is worth β/n with the sum.
  * g belongs to one sample, never to the batch mean, which would be B times too small.
  * Dividing by 2β alone would overshoot under downsampling, where the curvature is m times larger.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hpcsplit.config.option import option
from hpcsplit.config.sections import OptimSection
from hpcsplit.methods.contract import Advice, Aux, Batch, Step, StepResult, Tally, TrainingMethod, Variable, method
from hpcsplit.stage.stage import Place, Stage
from hpcsplit.terms.distance import psi_scale, squared_distance, wide_sum
from hpcsplit.terms.resample import average, pixels_per_cell, upsample
from hpcsplit.wire.port import NEXT, PREV, Recv, Send

EXPENSIVE = 0.05  # of a step, spent on variables


@method("penalty", compared=({}, {"downsample": 2}))
@dataclass(frozen=True)
class Penalty(TrainingMethod):
    """Quadratic penalty on the mismatch at every stage boundary (DS-SPH-P); κ ≡ 0."""

    BEGINS: ClassVar[dict[str, Any]] = {"lam": "forward"}  # the variables, and what they are at a switch

    beta: float = option(10.0, "penalty coefficient β", above=0.0, cures={"divergence": "lower"})
    beta_growth: float = option(1.0, "factor of β from one parallel epoch to the next", low=1.0)
    beta_max: float = option(1e6, "β grows to this", above=0.0)
    psi: str = option(
        "mean", "ψ over the n elements of a boundary; beta with mean is beta/n with sum", choices=("mean", "sum")
    )
    eta_lambda: float = option(1.0, "step of λ; 1 minimises the penalty part exactly", low=0.0, high=2.0)
    downsample: int = option(
        1,
        "2 keeps one value for 2 x 2 pixels of a feature map; vectors are kept whole",
        low=1,
        high=2,
        cells=True,
        cures={"disk": "raise"},
    )
    start: str = option(
        "forward",
        "variables at a switch: λ = x and κ = 0, or a step from there with the exact gradient, which takes a pass back",
        choices=("forward", "adjoint"),
        refused_if={
            "facts.augments": 'method.start = "{method.start}": {facts.name} keeps no variables that would be started; '
            "leave it out"
        },
        later=True,
    )
    refresh_every: int = option(
        0,
        "parallel epochs after which the variables start anew as at a switch; 0: at switches only",
        low=0,
        refused_if={
            "facts.augments": "method.refresh_every = {method.refresh_every}: {facts.name} keeps no variables that "
            "could be refreshed; leave it out",
            "method.start == 'forward'": "method.refresh_every = {method.refresh_every} throws away what the variables "
            'know of the labels; set method.start = "adjoint", which computes it anew, or leave refresh_every out',
        },
    )

    def variables(self, place: Place) -> tuple[Variable, ...]:
        own: dict[str, Any] = dict.fromkeys(self.BEGINS, "own") if self.starts_with_adjoint else self.BEGINS
        return tuple(Variable(name, "input", begins, PREV, self.downsample) for name, begins in own.items())

    @property
    def starts_with_adjoint(self) -> bool:  # type: ignore[override]
        return self.start == "adjoint"

    def first_rows(self, stage: Stage, x: Tensor, g: Tensor) -> Aux:
        if not self.starts_with_adjoint or stage.first:
            return {}
        x, slope = (average(t.to(stage.wide), self.downsample) for t in (x, g))
        _, m = self.curvature(stage.in_shape, stage.device, stage.wide)
        multiplier = "kappa" in {v.name for v in self.variables(stage.place)}
        return self.correct(stage, x, torch.zeros_like(x) if multiplier else None, slope * m, x)

    def at(self, parallel_epoch: int) -> Penalty:
        limit = max(self.beta, self.beta_max)
        try:
            grown = min(self.beta * self.beta_growth**parallel_epoch, limit)
        except OverflowError:
            grown = limit
        return dataclasses.replace(self, beta=grown)

    def restarts(self, parallel_epoch: int) -> bool:
        return bool(self.refresh_every) and parallel_epoch % self.refresh_every == 0

    def advice(self, optim: OptimSection, plan: Mapping[str, Any], rows: str, *, cached: bool) -> Advice:
        if not rows or any(len(stage["in_shape"]) != 3 for stage in plan["stages"][1:]):
            return []
        f = plan["forecast"]
        share = (f["t_psi"] + f["t_lam"] + f["t_kappa"]) / f["parallel_s"] if f else 0.0
        halve = not cached or share > EXPENSIVE
        why = f"variables take {share:.1%} of a step, " if f else ""
        cost = "a quarter of that, for less than a point in the paper" if halve else "little enough as they are"
        return [("method.downsample", "2" if halve else str(self.downsample), f"{why}{rows}: {cost}")]

    def curvature(
        self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor | float, Tensor | float]:
        """c and m of a boundary of `shape`."""
        m = pixels_per_cell(shape, self.downsample, device, dtype)
        return 2.0 * self.beta * psi_scale(shape, self.psi) * m, m

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        if not stage.first:
            aux = {**aux, "lam": aux["lam"].detach().requires_grad_()}
        x = stage.forward(batch.x if stage.first else self.local_input(stage, aux))  # (25)

        tally = Tally(batch.size)
        if stage.last:
            loss = stage.loss(x, batch.y)
            tally.count("phi", loss)
        else:
            x = x.to(stage.wide)
            yield Send(NEXT, "x", average(x.detach(), self.downsample))
            target = self.target(stage, aux)
            gap_sq = squared_distance(target, x)
            loss = self.beta * psi_scale(stage.out_shape, self.psi) * gap_sq
            tally.gap_sq, tally.aux_sq = wide_sum(gap_sq), wide_sum(target.square())
            tally.count("psi", loss)
            if "next_kappa" in aux:
                multiplier = (self._pixels(stage, aux["next_kappa"]) * x).flatten(1).sum(1)
                tally.count("kappa_x", multiplier)
                loss = loss + multiplier

        stage.descend(loss)  # (28)
        if stage.first:
            return StepResult(tally)

        lam, slope = aux["lam"].detach(), aux["lam"].grad
        assert slope is not None
        x_prev = yield stage.receive(PREV, "x", batch.size, wide=True, factor=self.downsample)
        return StepResult(tally, self.correct(stage, lam, aux.get("kappa"), slope * batch.size, x_prev))

    def correct(self, stage: Stage, lam: Tensor, kappa: Tensor | None, g: Tensor, x_prev: Tensor) -> dict[str, Tensor]:
        """Λ^new of (29); `x_prev` is avg x^{k-1}.  All tensors (B, *stored shape)."""
        c, m = self.curvature(stage.in_shape, stage.device, stage.wide)
        pull = g if kappa is None else g - m * kappa
        return {"lam": lam - self.eta_lambda * ((lam - x_prev) + pull / c)}

    def local_input(self, stage: Stage, aux: Aux) -> Tensor:
        return upsample(aux["lam"], stage.in_shape, self.downsample)

    def target(self, stage: Stage, aux: Aux) -> Tensor:
        return self._pixels(stage, aux["next_lam"])

    def adjoint(self, stage: Stage, aux: Aux, x: Tensor) -> tuple[Tensor, Tensor]:
        penalty = 2.0 * self.beta * psi_scale(stage.out_shape, self.psi) * (x - self.target(stage, aux))
        if "next_kappa" not in aux:
            return penalty, penalty
        return penalty + self._pixels(stage, aux["next_kappa"]), penalty

    def _pixels(self, stage: Stage, rows: Tensor) -> Tensor:
        """Rows of a variable at the stage's output, (B, *out_shape)."""
        return upsample(rows, stage.out_shape, self.downsample)


@method("al", compared=({"downsample": 1}, {"downsample": 2}))
@dataclass(frozen=True)
class AugmentedLagrangian(Penalty):
    """Augmented Lagrangian (DS-SPH-AL): the penalty with a multiplier κ for every λ."""

    BEGINS = Penalty.BEGINS | {"kappa": "zero"}

    beta: float = option(1.0, "penalty coefficient β", above=0.0, cures={"divergence": "lower"})
    downsample: int = option(
        2, "2 keeps one value for 2 x 2 pixels of a feature map; 1 keeps all", low=1, high=2, cells=True
    )
    eta_kappa: float = option(
        1.0, "step of κ; 1 goes all the way to stationarity, or is the step 2β", low=0.0, cures={"divergence": "lower"}
    )
    eta_kappa_form: str = option(
        "stationary",
        "towards stationarity in λ (19), or against the violation: 2β as in (19), or 1/(2β) as (30) is printed",
        choices=("stationary", "curvature", "printed"),
    )

    def correct(self, stage: Stage, lam: Tensor, kappa: Tensor | None, g: Tensor, x_prev: Tensor) -> dict[str, Tensor]:
        """Λ^new of (29) and, where there is a multiplier, Κ^new."""
        if kappa is None:
            return super().correct(stage, lam, None, g, x_prev)
        c, m = self.curvature(stage.in_shape, stage.device, stage.wide)
        if self.eta_kappa_form == "stationary":
            return {"lam": lam - self.eta_lambda * (lam - x_prev), "kappa": kappa + self.eta_kappa * (g / m - kappa)}
        new = super().correct(stage, lam, kappa, g, x_prev)
        per_pixel = c / m if self.eta_kappa_form == "curvature" else 1.0 / (2.0 * self.beta)
        return new | {"kappa": kappa - self.eta_kappa * per_pixel * (new["lam"] - x_prev)}


@dataclass(frozen=True)
class Passing(AugmentedLagrangian):
    """With variables that no store keeps: in each step stage k gives its λ_k (and κ_k) to stage k - 1."""

    beta: float = option(10.0, "penalty coefficient β", above=0.0, cures={"divergence": "lower"})
    downsample: int = option(1, "2 keeps one value for 2 x 2 pixels of a feature map", low=1, high=2, cells=True)
    eta_kappa: float = option(0.02, "step of κ", low=0.0, cures={"divergence": "lower"})
    eta_kappa_form: str = option("curvature", "as of al", choices=("stationary", "curvature", "printed"))
    multiplier: bool = option(False, "κ, too: the augmented Lagrangian")

    def variables(self, place: Place) -> tuple[Variable, ...]:
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        return ("lam", "kappa") if self.multiplier else ("lam",)

    def begun(self, lam: Tensor) -> Aux:
        """The variables of this λ, with κ = 0."""
        return dict(zip(self.names, (lam, torch.zeros_like(lam)), strict=False))

    def passed_on(self, stage: Stage, size: int, own: Aux) -> Generator[Send | Recv, Any, Aux]:
        """The stage's own variables of `size` samples and, from the next one, that stage's, without graphs."""
        aux = {name: value.detach() for name, value in own.items()}
        for name in () if stage.first else self.names:
            yield Send(PREV, name, aux[name])
        for name in () if stage.last else self.names:
            aux[f"next_{name}"] = yield stage.receive(NEXT, name, size, wide=True, factor=self.downsample)
        return aux
