"""What the two TSSM methods share: the own term of a stage, its slope at the input, and the pass that leaves no trace.

The paper divides R and the α term by the number of samples M, although the variables belong to one sample each: then
the label moves p by 1/M of what it should and never reaches the stages before the last.  `share_of` is that factor,
called s in the methods' formulas: 1 by default, 1/M with `scaling = "paper"`.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from hpcsplit.methods.contract import Aux, Batch, Tally, TrainingMethod
from hpcsplit.stage.stage import Stage
from hpcsplit.terms.distance import squared_distance, wide_sum
from hpcsplit.terms.steps import step_bound


class Splitting(TrainingMethod):
    """With the input of every stage but the first as a variable p, and α/2 ‖target − f(p)‖² as its own term."""

    alpha: float

    @abstractmethod
    def target(self, stage: Stage, aux: Aux) -> Tensor:
        """The variable that stands for the output of a stage that is not the last."""

    def local_input(self, stage: Stage, aux: Aux) -> Tensor:
        return aux["p"]

    def adjoint(self, stage: Stage, aux: Aux, x: Tensor) -> tuple[Tensor, Tensor]:
        pull = self.alpha * (x - self.target(stage, aux))
        return pull, pull


def share_of(scaling: str, batch: Batch) -> float:
    """s: how much of a sample's own term enters the steps of its variables."""
    return 1.0 if scaling == "sample" else 1.0 / batch.total


def train_weights(stage: Stage, p: Tensor, target: Tensor | None, alpha: float, batch: Batch, tally: Tally) -> None:
    """One optimizer step on the batch mean of the own term (TSSM eqs. 2, 3)."""
    loss = own_term(stage, stage.forward(p), target, alpha, batch)
    stage.descend(loss)
    tally.count("phi" if target is None else "omega", loss)
    if target is not None:
        tally.gap_sq, tally.aux_sq = 2.0 / alpha * wide_sum(loss), wide_sum(target.square())


def own_term(stage: Stage, x: Tensor, target: Tensor | None, alpha: float, batch: Batch) -> Tensor:
    """R of the last stage, α/2 ‖target − x‖² of the others; (B,)."""
    return stage.loss(x, batch.y) if target is None else alpha / 2 * squared_distance(target, x.to(stage.wide))


def slope(stage: Stage, p: Tensor, target: Tensor | None, alpha: float, batch: Batch) -> tuple[Tensor, Tensor]:
    """∂/∂p of each sample's own term, and f(p), with the weights as they are now."""
    p = p.detach().requires_grad_()
    with stage.statistics_kept():
        x = stage.forward(p)
    (g,) = torch.autograd.grad(own_term(stage, x, target, alpha, batch).sum(), p)
    return g, x.detach().to(stage.wide)


def tau_along(stage: Stage, p: Tensor, f: Tensor, d: Tensor, floor: float, stiffness: float, pull: float) -> Tensor:
    """τ₂ of each sample: the curvature of stiffness/2 ‖p‖² + pull/2 ‖f(p)‖² along d, `floor` where it is less.

    With less than that the step p − d/τ₂ may raise its terms.  f(p) is known; the curvature of the second term is
    Gauss and Newton's, its slope along d the mean over the step d/floor.  (B, 1, …) with as many dimensions as p.
    """
    slopes = floor * (f - forward_again(stage, p - d / floor))
    plain = d.flatten(1).square().sum(1)
    curved = stiffness * plain + pull * slopes.flatten(1).square().sum(1)
    return step_bound(curved, plain, floor).view(-1, *[1] * (p.dim() - 1))


def forward_again(stage: Stage, p: Tensor) -> Tensor:
    """f(p) in `wide` without a gradient and without a trace in BatchNorm statistics."""
    with stage.statistics_kept():
        return stage.infer(p).to(stage.wide)
