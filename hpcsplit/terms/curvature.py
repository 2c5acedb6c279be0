"""Step of one quadratic approximation f(x) − ‖g‖²/τ + τ/2 ‖g/τ‖² of a quadratic f (pdADMM's W and p steps).

Backtracking raises τ from its floor until f(x − g/τ) ≤ f(x) − ‖g‖²/(2τ).  For f with Hessian H the two sides differ by
‖g‖² (c − τ)/(2τ²), c = gᵀHg / ‖g‖², so the test holds for τ ≥ c and for no other: the limit of the search is known
without searching.  τ = c is the exact line search, the steepest descent of Cauchy.
"""

from __future__ import annotations

import torch
from torch import Tensor


def step_bound(curved: Tensor, plain: Tensor, floor: float) -> Tensor:
    """τ = max(floor, curved/plain), curved = gᵀHg and plain = ‖g‖²: (B, 1) for rows, () for a matrix; floor > 0.

    Where plain is 0 there is no step to take and τ is the floor.  NaN stays NaN.
    """
    return torch.where(plain == 0, 0.0, curved / plain).clamp(min=floor)
