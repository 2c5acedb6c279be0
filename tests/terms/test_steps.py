"""A bound against the test of a backtracking search; the two minimisers against brute force and Newton's method."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hpcsplit.terms.steps import cross_entropy_minimiser, relu_minimiser, step_bound


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


# ------------------------------------------------------------------------------------------------ z of a hidden layer

GRID = torch.linspace(-8, 8, 4001, dtype=torch.float64)
WEIGHTS = [(1.0, 1.0), (1.0, 3.0), (5.0, 0.25), (1e-3, 2.0), (2.0, 0.0)]


def value(z: Tensor, a: Tensor, q: Tensor, w_a: float = 1.0, w_q: float = 1.0) -> Tensor:
    return w_a * (z - a) ** 2 + w_q * (q - z.clamp(min=0)) ** 2


def pairs() -> tuple[Tensor, Tensor]:
    """Every pair of 61 values from -3 to 3: all signs, zeros, a = q and a = -q; 0 and the integers are met exactly."""
    steps = torch.arange(-30, 31, dtype=torch.float64) / 10
    a, q = torch.meshgrid(steps, steps, indexing="ij")
    return a, q


@pytest.mark.parametrize(("w_a", "w_q"), WEIGHTS)
def test_no_point_of_a_fine_grid_is_better(w_a: float, w_q: float) -> None:
    a, q = pairs()
    z = relu_minimiser(a, q, w_a=w_a, w_q=w_q)
    for row in range(len(a)):
        least = value(GRID, a[row, :, None], q[row, :, None], w_a, w_q).amin(1)
        assert (value(z[row], a[row], q[row], w_a, w_q) <= least + 1e-14).all()


def test_the_four_cases_by_hand() -> None:
    a = torch.tensor([2.0, 1.0, -1.0, -1.0, -1.0])
    q = torch.tensor([4.0, -3.0, -2.0, 1.0, 4.0])
    # halfway; the corner, for the square of a wants less than halfway below; a itself, twice; halfway although a < 0
    assert relu_minimiser(a, q).tolist() == [3.0, 0.0, -1.0, -1.0, 1.5]


def test_of_two_equal_values_the_active_one_is_taken() -> None:
    a, q = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])
    below, above = a, a / 4 + 3 * q / 4
    assert torch.equal(value(below, a, q, w_q=3.0), value(above, a, q, w_q=3.0))
    assert torch.equal(relu_minimiser(a, q, w_q=3.0), above)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_values_whose_squares_leave_float32_are_told_apart(size: float) -> None:
    a, q = torch.tensor([-1.0, -1.0]) * size, torch.tensor([2.4, 2.5]) * size  # 1 + √2 is between them
    assert (relu_minimiser(a, q) > 0).tolist() == [False, True]


def test_nan_of_either_side_is_not_hidden() -> None:
    nan, one = torch.tensor([torch.nan, 1.0, -1.0]), torch.tensor([1.0, torch.nan, torch.nan])
    assert relu_minimiser(nan, one).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 2, 2)])
def test_shape_and_dtype_are_kept_and_the_arguments_left_alone(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    a, q = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    before = a.clone(), q.clone()
    z = relu_minimiser(a, q, w_q=0.5)
    assert (z.shape, z.dtype) == (shape, dtype)
    assert torch.equal(a, before[0])
    assert torch.equal(q, before[1])


class Allocations(TorchDispatchMode):
    """Counts the bytes of all results."""

    nbytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Tensor],
        types: Collection[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        found = func(*args, **(kwargs or {}))
        self.nbytes += found.nbytes
        return found


def test_it_takes_a_few_temporaries_of_the_size_of_z() -> None:
    a, q = torch.randn(100, 100), torch.randn(100, 100)
    with Allocations() as made:  # type: ignore[no-untyped-call]
        relu_minimiser(a, q)
    assert a.nbytes < made.nbytes < 10 * a.nbytes


# ------------------------------------------------------------------------------------------------ z of the last layer

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
