"""z of a hidden layer: the minimiser of its two squares with a ReLU in one, in closed form (pdADMM, dlADMM)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relu_minimiser(a: Tensor, q: Tensor, *, w_a: float = 1.0, w_q: float = 1.0) -> Tensor:
    """The z of least w_a (z − a)² + w_q (q − max(z, 0))², element by element; any shape, w_a > 0, w_q ≥ 0.

    Below zero it is min(a, 0), above zero max((w_a a + w_q q)/(w_a + w_q), 0).  Their values are compared by their
    roots: the lower half wins if a + t q < 0, t = √(1 + w_q/w_a) − 1, exact where squares overflow or cancel.  Equal
    values go to the upper half, where the unit is active.  NaN stays NaN.
    """
    ratio = w_q / w_a
    t = ratio / (math.sqrt(1 + ratio) + 1)
    total = w_a + w_q
    above = (w_a / total * a + w_q / total * q).clamp(min=0)
    return torch.where(a + t * q < 0, a.clamp(max=0), above)
