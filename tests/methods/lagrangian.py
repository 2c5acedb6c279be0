"""The paper's per-sample Lagrangian, written out over the whole network, and its steps by autograd.

    L = φ(x^{K-1}; y) + Σ_{k≥1} [ β ψ(λ_k, x^{k-1}) − ⟨κ_k, λ_k − x^{k-1}⟩ ],   x^k = f_k(λ_k),  λ_0 = the image

Nothing here comes from hpcsplit: the tests compare its steps with these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Lagrangian:
    """L of every sample for given stages, images and labels, as a function of the stored Λ and Κ."""

    parts: Sequence[nn.Sequential]
    shapes: Sequence[tuple[int, ...]]  # of one sample, from the images to the logits
    images: Tensor
    labels: Tensor
    beta: float
    psi: str
    factor: int

    def __call__(self, lam: Sequence[Tensor], kappa: Sequence[Tensor]) -> Tensor:
        """(B,); entry 0 of `lam` and `kappa` is not used, no entry of `kappa` means κ = 0."""
        full = [self.images, *(self.on_pixels(lam[k], self.shapes[k]) for k in range(1, len(self.parts)))]
        x = [part(value) for part, value in zip(self.parts, full, strict=True)]
        total = -F.log_softmax(x[-1], dim=1)[torch.arange(len(self.labels)), self.labels]
        for k in range(1, len(self.parts)):
            gap = (full[k] - x[k - 1]).flatten(1)
            square = (gap * gap).sum(1)
            total = total + self.beta * (square / gap.shape[1] if self.psi == "mean" else square)
            if kappa:
                total = total - (self.on_pixels(kappa[k], self.shapes[k]).flatten(1) * gap).sum(1)
        return total

    def on_pixels(self, stored: Tensor, shape: tuple[int, ...]) -> Tensor:
        """λ = US(Λ): Kronecker with ones, cut to the size of the image."""
        if self.factor == 1:
            return stored
        ones = torch.ones(1, 1, self.factor, self.factor, dtype=stored.dtype)
        return torch.kron(stored, ones)[:, :, : shape[1], : shape[2]]

    def slope(self, name: str, k: int, lam: Sequence[Tensor], kappa: Sequence[Tensor]) -> Tensor:
        """∂L/∂Λ_k or ∂L/∂Κ_k of every sample."""
        values = {"lam": list(lam), "kappa": list(kappa)}
        values[name][k] = values[name][k].clone().requires_grad_()
        (slope,) = torch.autograd.grad(self(**values).sum(), values[name][k])
        return slope

    def averaged(self, k: int, lam: Sequence[Tensor]) -> Tensor:
        """x^{k-1} of every sample, as Λ_k stores it."""
        before = self.images if k == 1 else self.on_pixels(lam[k - 1], self.shapes[k - 1])
        with torch.no_grad():
            x = self.parts[k - 1](before)
        stored = torch.zeros(len(x), *self._stored_shape(k), dtype=x.dtype, requires_grad=True)
        (total,) = torch.autograd.grad((self.on_pixels(stored, self.shapes[k]) * x).sum(), stored)
        return total / self.pixels(k)

    def pixels(self, k: int) -> Tensor | float:
        """m: how many pixels each stored value of boundary k stands for."""
        if self.factor == 1:
            return 1.0
        ones = torch.ones(1, *self.shapes[k], dtype=torch.float64)
        stored = torch.zeros(1, *self._stored_shape(k), dtype=torch.float64, requires_grad=True)
        (m,) = torch.autograd.grad((self.on_pixels(stored, self.shapes[k]) * ones).sum(), stored)
        return m[0]

    def _stored_shape(self, k: int) -> tuple[int, ...]:
        channels, *sizes = self.shapes[k]
        if self.factor == 1:
            return self.shapes[k]
        return channels, *(math.ceil(size / self.factor) for size in sizes)

    def curvature(self, k: int) -> Tensor | float:
        """c = 2 β m with the sum, 2 β m / n with the mean."""
        per_pixel = 2 * self.beta / (math.prod(self.shapes[k]) if self.psi == "mean" else 1)
        return per_pixel * self.pixels(k)
