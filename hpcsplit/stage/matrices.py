"""Optimizers that take a weight for a matrix: Muon, and Adam in a rotated basis.

A weight (out, …) counts as a matrix with `out` rows; a vector, such as a bias or a scale of BatchNorm, has neither a
basis to rotate nor a polar factor, and takes the plain step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)  # takes singular values from 0.01 to 1 into 0.7 … 1.2 in five steps
_STEPS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U Vᵀ of the singular value decomposition U S Vᵀ of a matrix (n, m): singular values 0.7 to 1.2.  Five
    steps of a Newton-Schulz iteration (Jordan et al., "Muon", 2024), which are products of matrices alone."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x: Tensor = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


class _Matrices(torch.optim.Optimizer):
    """One step of each weight that has a gradient."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._one(p, p.grad, self.state[p], group)

    def _one(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


class Muon(_Matrices):
    """W ← W − η (√max(1, n/m) · orthogonalised(g + μ v) + decay · W),  v ← μ v + g, for a weight of n rows, m columns.

    Vectors step along g + μ v itself (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024).
    torch.optim.Muon has the same step for matrices alone, in bfloat16.
    """

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _one(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        v = state.setdefault("momentum_buffer", torch.zeros_like(p))
        v.mul_(group["momentum"]).add_(g)
        along = g + group["momentum"] * v
        if p.dim() > 1 and p.is_floating_point():
            rows = along.flatten(1)
            scale = max(1.0, rows.shape[0] / rows.shape[1]) ** 0.5
            along = scale * orthogonalised(rows).reshape(p.shape)
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(along, alpha=group["lr"])


class RotatedAdam(_Matrices):
    """AdamW in the eigenbasis Q of the mean of g gᵀ (of gᵀ g where a weight has more rows than columns).

    W ← W − η (Q m̂' / (√v̂' + ε) + decay · W),  m' = Qᵀ m of the mean gradient m,  v' the mean square of Qᵀ g.
    Stale gradients hurt Adam the more, the less its basis is that of the curvature (Jung et al., "Mitigating Staleness
    in Asynchronous Pipeline Parallelism via Basis Rotation", 2026); the basis is that of SOAP (Vyas et al. 2024), of
    one side, made anew every `every` steps by one step of orthogonal iteration.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        every: int = 10,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps, "every": every})

    def _one(self, p: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        b1, b2 = group["betas"]
        turned = p.dim() > 1 and p.is_floating_point()
        if not state:
            real = torch.zeros_like(p, dtype=p.abs().dtype)
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": real}
        state["step"] += 1
        done = int(state["step"])
        mean, square = state["exp_avg"].lerp_(g, 1 - b1), state["exp_avg_sq"]
        basis = self._basis(g.flatten(1), state, group, done) if turned else None
        square.lerp_(_turn(g, basis).abs().square(), 1 - b2)
        along = _turn(mean, basis) / (1 - b1**done) / ((square / (1 - b2**done)).sqrt() + group["eps"])
        along = _turn(along, None if basis is None else basis.T)
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(along, alpha=group["lr"])

    def _basis(self, g: Tensor, state: dict[str, Any], group: dict[str, Any], done: int) -> Tensor:
        """Q (k, k) with k the smaller side of the matrix g (n, m)."""
        gram = g @ g.T if g.shape[0] <= g.shape[1] else g.T @ g
        if "gram" not in state:
            state["gram"] = gram * (1 - group["betas"][1])
            state["basis"] = torch.linalg.eigh(gram).eigenvectors
        else:
            state["gram"] = state["gram"].to(g.device).lerp_(gram, 1 - group["betas"][1])
            if done % group["every"] == 0:
                state["basis"] = torch.linalg.qr(state["gram"] @ state["basis"].to(g.device)).Q
        basis: Tensor = state["basis"].to(g.device)
        return basis


def _turn(t: Tensor, basis: Tensor | None) -> Tensor:
    """Qᵀ t, or t Q where the basis belongs to the columns, of a weight-like t (n, …); t itself without a basis."""
    if basis is None:
        return t
    rows = t.flatten(1)
    turned = basis.T @ rows if rows.shape[0] <= rows.shape[1] else rows @ basis
    return turned.reshape(t.shape)
