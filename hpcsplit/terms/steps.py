"""The steps of the ADMM methods that are more than a formula: a bound of backtracking, and two minimisers for z."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def step_bound(curved: Tensor, plain: Tensor, floor: float) -> Tensor:
    """τ = max(floor, curved/plain), curved = gᵀHg and plain = ‖g‖²: (B, 1) for rows, () for a matrix; floor > 0.

    The step of one quadratic approximation f(x) − ‖g‖²/τ + τ/2 ‖g/τ‖² of a quadratic f with Hessian H (pdADMM's W and p
    steps).  Backtracking raises τ from its floor until f(x − g/τ) ≤ f(x) − ‖g‖²/(2τ).  The two sides differ by
    ‖g‖² (c − τ)/(2τ²), c = gᵀHg / ‖g‖², so the test holds for τ ≥ c and for no other: the limit of the search is known
    without searching.  τ = c is the exact line search, the steepest descent of Cauchy.  Where plain is 0 there is no
    step to take and τ is the floor.  NaN stays NaN.
    """
    return torch.where(plain == 0, 0.0, curved / plain).clamp(min=floor)


def relu_minimiser(a: Tensor, q: Tensor, *, w_a: float = 1.0, w_q: float = 1.0) -> Tensor:
    """z of a hidden layer (pdADMM, dlADMM), the z of least w_a (z − a)² + w_q (q − max(z, 0))², element by element; any
    shape, w_a > 0, w_q ≥ 0.

    Below zero it is min(a, 0), above zero max((w_a a + w_q q)/(w_a + w_q), 0).  Their values are compared by their
    roots: the lower half wins if a + t q < 0, t = √(1 + w_q/w_a) − 1, exact where squares overflow or cancel.  Equal
    values go to the upper half, where the unit is active.  NaN stays NaN.
    """
    ratio, total = w_q / w_a, w_a + w_q
    t = ratio / (math.sqrt(1 + ratio) + 1)
    above = (w_a / total * a + w_q / total * q).clamp(min=0)
    return torch.where(a + t * q < 0, a.clamp(max=0), above)


class Minimum(NamedTuple):
    """Where a search ended: z (B, C), the steps of its slowest row, and whether every row met the tolerance."""

    z: Tensor
    iterations: int
    converged: bool


def cross_entropy_minimiser(
    a: Tensor, labels: Tensor, nu: float, *, tol: float, max_iterations: int, start: Tensor | None = None
) -> Minimum:
    """z of the last layer: argmin over z of CE(z; y) + ν/2 ‖z − a‖² by FISTA (Beck & Teboulle 2009; pdADMM's z_L step),
    for each row by itself: a and start (B, C), labels (B,); start a.

    The step 1/(1/2 + ν), 1/2 above the curvature of CE, is FISTA's step 2 on CE followed by the proximal point of the
    square.  Momentum for strong convexity ν (Nesterov 2004, 2.2.20), begun anew in a row where it points uphill
    (O'Donoghue & Candès 2015).  A row rests once the norm of its gradient is ≤ tol, so it does not depend on the rows
    beside it: then its sum is within tol²/2ν of the least and z within tol/ν.  Rounding keeps the gradient above about
    ε max |z|; a smaller tol runs to max_iterations and says converged = False, as NaN does.
    """
    step, q = 1 / (0.5 + nu), nu / (0.5 + nu)
    one_hot = F.one_hot(labels, a.shape[1]).to(a.dtype)
    d = y = torch.zeros_like(a) if start is None else start - a  # from a on: ν d keeps its digits where ν a has none
    theta = torch.ones_like(a[:, :1])
    for iterations in range(max_iterations + 1):
        slope = torch.softmax(a + y, 1) - one_hot + nu * y
        small = slope.norm(dim=1, keepdim=True) <= tol
        if iterations == max_iterations or small.all():
            break
        new = y - step * slope
        theta = torch.where((slope * (new - d)).sum(1, keepdim=True) > 0, 1.0, theta)
        excess = theta.square() - q
        following = (torch.sqrt(excess.square() + 4 * theta.square()) - excess) / 2
        momentum = theta * (1 - theta) / (theta.square() + following)
        y = torch.where(small, y, new + momentum * (new - d))
        d, theta = new, following
    return Minimum(a + y, iterations, bool(small.all()))
