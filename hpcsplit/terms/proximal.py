"""z of the last layer: the proximal point of the cross-entropy by FISTA (Beck & Teboulle 2009; pdADMM's z_L step)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Minimum(NamedTuple):
    """Where a search ended: z (B, C), the steps of its slowest row, and whether every row met the tolerance."""

    z: Tensor
    iterations: int
    converged: bool


def cross_entropy_minimiser(
    a: Tensor, labels: Tensor, nu: float, *, tol: float, max_iterations: int, start: Tensor | None = None
) -> Minimum:
    """argmin over z of CE(z; y) + ν/2 ‖z − a‖², for each row by itself: a and start (B, C), labels (B,); start a.

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
