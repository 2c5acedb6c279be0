"""FISTA on the cross-entropy against Newton's method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpcsplit.terms.steps import cross_entropy_minimiser

NUS = [1e-6, 1e-4, 1e-2, 1.0, 100.0]


def problem(
    rows: int = 8, classes: int = 5, size: float = 3.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    seeded = torch.Generator().manual_seed(7)
    a = size * torch.randn(rows, classes, dtype=torch.float64, generator=seeded)
    return a.to(dtype), torch.randint(classes, (rows,), generator=seeded)


def newton(a: Tensor, label: Tensor, nu: float) -> Tensor:
    """The minimiser of one row (C,): Newton steps, halved until the gradient shrinks, as long as it does."""

    def total(z: Tensor) -> Tensor:
        return F.cross_entropy(z, label) + nu / 2 * (z - a).square().sum()

    def gradient(z: Tensor) -> Tensor:
        return torch.autograd.grad(total(z.requires_grad_()), z)[0]

    z = a
    for _ in range(100):
        g = gradient(z.clone())
        step = torch.linalg.solve(torch.autograd.functional.hessian(total, z), g)
        halves = (z - step / 2**i for i in range(12))
        following = next((near for near in halves if gradient(near.clone()).norm() < g.norm()), None)
        if following is None:
            return z
        z = following
    raise AssertionError("Newton's method does not end")


@pytest.mark.parametrize("nu", NUS)
def test_the_answer_is_newtons(nu: float) -> None:
    a, labels = problem()
    found = cross_entropy_minimiser(a, labels, nu, tol=1e-12, max_iterations=50_000)
    assert found.converged
    wanted = torch.stack([newton(row, label, nu) for row, label in zip(a, labels, strict=True)])
    torch.testing.assert_close(found.z, wanted, rtol=0, atol=1e-12 / nu + 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nu", NUS)
def test_every_row_is_stationary_to_the_tolerance(nu: float, dtype: torch.dtype) -> None:
    a, labels = problem(rows=50, classes=10, dtype=dtype)
    before = a.clone()
    found = cross_entropy_minimiser(a, labels, nu, tol=1e-5, max_iterations=5000)
    assert found.converged
    assert found.z.dtype == dtype
    assert torch.equal(a, before)
    z = found.z.double().requires_grad_()
    total = F.cross_entropy(z, labels, reduction="sum") + nu / 2 * (z - a.double()).square().sum()
    (g,) = torch.autograd.grad(total, z)
    of_z = nu * torch.finfo(dtype).eps * a.abs().max().item()  # what z's own last digit is worth
    assert g.norm(dim=1).max() <= 1.1e-5 + 4 * of_z


def test_a_stiff_square_leaves_the_gradient_its_digits_in_float32() -> None:
    """ν (z − a) from z itself would carry an error of 100 · 1e-7 · 20 here, more than the tolerance."""
    a, labels = problem(rows=50, size=10, dtype=torch.float32)
    assert cross_entropy_minimiser(a, labels, 100.0, tol=1e-5, max_iterations=20).converged


@pytest.mark.parametrize(("nu", "most"), [(100.0, 6), (1.0, 20), (1e-2, 200), (1e-4, 1600)])
def test_steps_grow_as_the_root_of_the_condition(nu: float, most: int) -> None:
    """Ten times as many for ν a hundred times smaller; gradient descent takes a hundred times as many."""
    a, labels = problem(rows=100, classes=10)
    found = cross_entropy_minimiser(a, labels, nu, tol=1e-10, max_iterations=most)
    assert found.converged
    assert most / 4 < found.iterations <= most


def test_momentum_begins_anew_where_it_overshoots() -> None:
    """111 steps; 301 without a restart."""
    a, labels = problem(rows=100, classes=10, size=30.0)
    assert cross_entropy_minimiser(a, labels, 1e-4, tol=1e-3, max_iterations=150).converged


@pytest.mark.parametrize("nu", NUS)
def test_the_first_step_is_fistas(nu: float) -> None:
    """A gradient step of 2 on CE, then the proximal point of 2 · ν/2 ‖z − a‖²: (v + 2 ν a) / (1 + 2 ν)."""
    a, labels = problem()
    start = a.flip(0)
    v = start - 2 * (torch.softmax(start, 1) - F.one_hot(labels, 5))
    found = cross_entropy_minimiser(a, labels, nu, tol=0.0, max_iterations=1, start=start)
    torch.testing.assert_close(found.z, (v + 2 * nu * a) / (1 + 2 * nu))


def test_a_search_that_is_cut_off_says_so() -> None:
    a, labels = problem()
    cut = cross_entropy_minimiser(a, labels, 1e-6, tol=1e-12, max_iterations=30)
    assert (cut.iterations, cut.converged) == (30, False)
    before = F.cross_entropy(a, labels)
    assert F.cross_entropy(cut.z, labels) < 0.1 * before


def test_no_step_at_all_leaves_the_start() -> None:
    a, labels = problem()
    z, iterations, converged = cross_entropy_minimiser(a, labels, 1.0, tol=1e-12, max_iterations=0)
    assert (iterations, converged) == (0, False)
    assert torch.equal(z, a)


def test_the_callers_start_is_used() -> None:
    a, labels = problem()
    cold = cross_entropy_minimiser(a, labels, 0.1, tol=1e-10, max_iterations=1000)
    at_rest = cross_entropy_minimiser(a, labels, 0.1, tol=1e-9, max_iterations=1000, start=cold.z)
    assert (at_rest.iterations, at_rest.converged) == (0, True)
    torch.testing.assert_close(at_rest.z, cold.z, rtol=0, atol=1e-14)
    start = a + 20 * torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(3))
    before = start.clone()
    far = cross_entropy_minimiser(a, labels, 0.1, tol=1e-10, max_iterations=1000, start=start)
    assert far.iterations > cold.iterations
    torch.testing.assert_close(far.z, cold.z, rtol=0, atol=2e-9)
    assert torch.equal(start, before)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    a, labels = problem(rows=20)
    together = cross_entropy_minimiser(a, labels, 1e-3, tol=1e-3, max_iterations=1000)
    alone = [
        cross_entropy_minimiser(a[i, None], labels[i, None], 1e-3, tol=1e-3, max_iterations=1000) for i in range(20)
    ]
    torch.testing.assert_close(together.z, torch.cat([one.z for one in alone]), rtol=0, atol=1e-9)
    assert together.iterations == max(one.iterations for one in alone) > min(one.iterations for one in alone)


def test_nan_is_not_taken_for_an_answer() -> None:
    a, labels = problem()
    a[3, 1] = torch.nan
    found = cross_entropy_minimiser(a, labels, 1.0, tol=1e-6, max_iterations=50)
    assert not found.converged
    assert found.z[3].isnan().all()
    assert found.z[:3].isfinite().all()
