"""The z step of a hidden layer against brute force."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hpcsplit.terms.steps import relu_minimiser

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
