"""ψ, the squared distance between a stored variable and the activation it stands for (DS-SPH eq. 8)."""

from __future__ import annotations

import math

from torch import Tensor


def squared_distance(lam: Tensor, x: Tensor) -> Tensor:
    """‖λ − x‖² of each sample: two tensors (B, …) give (B,), in float32 or wider."""
    return (lam - x).flatten(1).square().sum(1)


def psi_scale(shape: tuple[int, ...], psi: str) -> float:
    """What ψ multiplies the squared distance by: 1 for "sum", 1/n for "mean" over the n elements of one sample.  β
    with the mean is worth β/n with the sum."""
    return 1.0 if psi == "sum" else 1.0 / math.prod(shape)


def wide_sum(values: Tensor) -> Tensor:
    """The sum of all values, without a graph, where they lie: added up in their own type, kept in float64 ()."""
    return values.detach().sum().double()
