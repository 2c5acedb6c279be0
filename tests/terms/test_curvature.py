"""The test of a backtracking search on random quadratics, at and just below the bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcsplit.terms.steps import step_bound


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def excess(x: Tensor, hessian: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    """f(x − g/τ) − f(x) + ‖g‖²/(2τ) of each row, f(x) = ½ xᵀHx − bᵀx; the search stops where it is ≤ 0."""

    def f(x: Tensor) -> Tensor:
        return ((x @ hessian) * x).sum(1, keepdim=True) / 2 - x @ b

    g = x @ hessian - b[:, 0]
    return f(x - g / tau) - f(x) + g.square().sum(1, keepdim=True) / (2 * tau)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_stops_at_the_bound_of_each_row_and_not_below(seed: int) -> None:
    root, b, x = random(6, 6, seed=seed), random(6, 1, seed=seed + 10), random(20, 6, seed=seed + 20)
    hessian = root @ root.T
    g = x @ hessian - b[:, 0]
    tau = step_bound(((g @ hessian) * g).sum(1, keepdim=True), g.square().sum(1, keepdim=True), 1e-9)
    assert tau.shape == (20, 1)
    size = g.square().sum(1, keepdim=True) / tau
    assert (excess(x, hessian, b, tau).abs() <= 1e-12 * size).all()
    assert (excess(x, hessian, b, 1.5 * tau) < 0).all()
    assert (excess(x, hessian, b, 0.99 * tau) > 1e-4 * size).all()


@pytest.mark.parametrize("nu", [1e-3, 1.0, 50.0])
def test_one_bound_for_the_weights_of_a_layer(nu: float) -> None:
    """f(W) = ν/2 ‖z − p Wᵀ‖², the W step of pdADMM: gᵀHg = ν ‖p gᵀ‖²."""
    p, z, weight = random(30, 5, seed=1), random(30, 4, seed=2), random(4, 5, seed=3)

    def f(weight: Tensor) -> Tensor:
        return nu / 2 * (z - p @ weight.T).square().sum()

    g = -nu * (z - p @ weight.T).T @ p
    tau = step_bound(nu * (p @ g.T).square().sum(), g.square().sum(), 1e-9)
    assert tau.shape == ()

    def passes(tau: Tensor, rounding: float) -> bool:
        return bool(f(weight - g / tau) <= f(weight) - g.square().sum() / (2 * tau) + rounding * f(weight))

    assert passes(tau, 1e-12)
    assert not passes(0.99 * tau, 1e-12)


def test_the_floor_holds_below_the_curvature_only() -> None:
    curved, plain = torch.tensor([[2.0], [8.0]]), torch.tensor([[1.0], [2.0]])
    assert step_bound(curved, plain, 3.0).tolist() == [[3.0], [4.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1, 1)])
def test_without_a_gradient_the_bound_is_the_floor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    zero = torch.zeros(shape, dtype=dtype)
    tau = step_bound(zero, zero, 0.5)
    assert torch.equal(tau, torch.full(shape, 0.5, dtype=dtype))


def test_nan_is_not_hidden_by_the_floor() -> None:
    nan, one = torch.tensor(torch.nan), torch.tensor(1.0)
    assert step_bound(nan, one, 0.5).isnan()
    assert step_bound(one, nan, 0.5).isnan()
