"""What the layer-wise methods share: the linear layers of a stage, and the steps of one layer's linear residual.

The term of a layer with input p, output z and weights W, b is, over all samples (rows here, columns in the papers),

    φ(p, W, b) = c/2 ‖r‖² + ⟨m, r⟩,     r = z − p Wᵀ − b,

with a coefficient c and a multiplier m (0 for most layers).  It is quadratic in p and in W, so that the limit of the
papers' backtracking is known without trials (terms/steps.py).  W and b need sums over all samples only, taken block
by block, so the memory does not grow with the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Stage
from hpcsplit.terms.steps import step_bound

FLOOR = 1e-12  # of every τ and θ


def linear_layers(stage: Stage) -> list[nn.Linear]:
    """The layers of a stage of the feed-forward network, one in each block."""
    return [next(m for m in block.modules() if isinstance(m, nn.Linear)) for block in stage.blocks]


def linear(layer: nn.Linear, p: Tensor) -> Tensor:
    """p Wᵀ + b without a gradient."""
    return F.linear(p, layer.weight.detach(), layer.bias.detach())


def input_step(p: Tensor, g: Tensor, layer: nn.Linear, c: float, rest: float) -> tuple[Tensor, Tensor]:
    """p − g/τ with each row's own τ, and what it adds to r, for the slope g (B, n) of φ and of other terms of p whose
    curvature is `rest`."""
    through = g @ layer.weight.detach().T
    curved = c * through.square().sum(1, keepdim=True) + rest * g.square().sum(1, keepdim=True)
    tau = step_bound(curved, g.square().sum(1, keepdim=True), FLOOR)
    return p - g / tau, through / tau


def weight_step(slope: Tensor, gram: Tensor, c: float) -> Tensor:
    """What one quadratic-approximation step adds to W: (1/θ) (c r + m)ᵀ p, for that slope and the gram matrix pᵀ p."""
    theta = step_bound(c * ((slope @ gram) * slope).sum(), slope.square().sum(), FLOOR)
    return slope / theta


def sum_up(kept: Carry, p: Tensor, pull: Tensor) -> None:
    """Add a block of samples to what the steps of W and b need, in what the layer's block keeps; `pull` (B, outputs) is
    c r + m = −∂φ/∂(p Wᵀ + b)."""
    parts = {"slope": pull.T @ p, "gram": p.T @ p, "pull": pull.sum(0), "input": p.sum(0)}
    for key, part in {**parts, "rows": torch.tensor(float(len(p)))}.items():
        kept[key] = kept[key] + part if key in kept else part


def descend(kept: Carry, layer: nn.Linear, c: float) -> float:
    """One quadratic-approximation step of W, then the minimiser b; forgets the sums, returns the squared step."""
    slope, gram, pull, inputs, rows = map(kept.pop, ("slope", "gram", "pull", "input", "rows"))
    step_w = weight_step(slope, gram, c)
    step_b = (pull / c - step_w @ inputs) / rows
    layer.weight.data += step_w
    layer.bias.data += step_b
    return float(step_w.square().sum() + step_b.square().sum())
