"""ψ against its formula."""

from __future__ import annotations

import pytest
import torch

from hpcsplit.terms.distance import psi_scale, squared_distance


def test_squared_distance_is_a_sum_over_the_elements_of_each_sample() -> None:
    lam = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 5.0]]])
    x = torch.tensor([[[0.0, 2.0], [3.0, 2.0]], [[0.0, 0.0], [3.0, 1.0]]])
    assert squared_distance(lam, x).tolist() == [1 + 4, 9 + 16]


def test_squared_distance_keeps_float64() -> None:
    a, b = torch.ones(1, 3, dtype=torch.float64), torch.full((1, 3), 1e-12, dtype=torch.float64)
    assert squared_distance(a + b, a).dtype == torch.float64
    assert squared_distance(a + b, a).item() == pytest.approx(3e-24, rel=1e-3)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (16, 32, 32)])
def test_beta_with_the_mean_is_worth_beta_over_n_with_the_sum(shape: tuple[int, ...]) -> None:
    """Erratum 3: β mean ψ = (β / n) sum ψ over the n elements of one sample, whatever the batch."""
    difference = torch.randn(4, *shape, dtype=torch.float64)
    beta, n = 100.0, difference[0].numel()
    mean_form = beta * difference.square().flatten(1).mean(1)
    distance = squared_distance(difference, torch.zeros_like(difference))
    torch.testing.assert_close(beta * psi_scale(shape, "mean") * distance, mean_form)
    torch.testing.assert_close(beta / n * psi_scale(shape, "sum") * distance, mean_form)
