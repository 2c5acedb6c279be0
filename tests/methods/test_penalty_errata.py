"""Where the paper disagrees with itself: which reading the program has, shown by what the other one would do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpcsplit.methods.penalty import AugmentedLagrangian, Penalty
from tests.methods.tiny import activations, batch_of, conv_parts, first_step

SHAPE = (1, 6, 6)


def silent_network() -> list[torch.nn.Sequential]:
    """Two stages whose logits are always 0: φ has no slope in λ, so only β ψ moves it."""
    parts = conv_parts(2, SHAPE)
    for p in parts[1][-1].parameters():
        torch.nn.init.zeros_(p)
    return parts


def lam_before_and_after(method: Penalty, kappa: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Λ of the last stage before a step and after it, and the averaged activation that it stands for."""
    parts = silent_network()
    _, rows, results = first_step(method, parts, SHAPE, kappa=kappa)
    x = activations(parts, batch_of(SHAPE)[0])[1]
    averaged = x if method.downsample == 1 else F.avg_pool2d(x, 2)
    return rows["lam"][1], results[1].aux["lam"], averaged


@pytest.mark.parametrize("psi", ["mean", "sum"])
@pytest.mark.parametrize("downsample", [1, 2])
def test_1_the_last_stage_has_the_penalty_term(psi: str, downsample: int) -> None:
    """With η_λ = 1 it reaches avg x at once; Algorithm 1 as printed would leave Λ where it was."""
    before, after, x = lam_before_and_after(Penalty(psi=psi, downsample=downsample))
    torch.testing.assert_close(after, x)
    assert not torch.allclose(before, x)


def kappa_step(form: str, psi: str) -> Tensor:
    method = AugmentedLagrangian(beta=100.0, psi=psi, eta_kappa=1.0, eta_kappa_form=form)
    return first_step(method, conv_parts(2, SHAPE), SHAPE, kappa=0.0)[2][1].aux["kappa"]


def test_2_the_printed_multiplier_step_is_40_000_times_smaller_at_beta_100() -> None:
    torch.testing.assert_close(kappa_step("curvature", "sum"), 40_000 * kappa_step("printed", "sum"))


def test_3_beta_with_the_mean_is_worth_beta_over_n_with_the_sum() -> None:
    """And the mean is the default."""
    methods = Penalty(beta=50.0, psi="mean"), Penalty(beta=50.0 / (2 * 6 * 6), psi="sum")
    found = [first_step(method, conv_parts(3, SHAPE), SHAPE)[2][2].aux["lam"] for method in methods]
    torch.testing.assert_close(*found)
    assert Penalty().psi == AugmentedLagrangian().psi == "mean"


def test_4_dividing_by_two_beta_alone_multiplies_the_error_by_minus_3_under_downsampling() -> None:
    """The gradient of β ψ is 4 · 2β (Λ − avg x): what 1/(2β) makes of it is η_λ = 4 here."""
    before, after, x = lam_before_and_after(Penalty(psi="sum", downsample=2, eta_lambda=4.0))
    torch.testing.assert_close(after - x, -3 * (before - x))


def test_6_downsampled_multipliers_act_on_every_pixel_of_their_cell() -> None:
    """A constant Κ moves Λ as the same κ on all pixels moves λ: by η κ / (2β), however many pixels a cell has."""
    for downsample in (1, 2):
        method = AugmentedLagrangian(beta=4.0, psi="sum", downsample=downsample, eta_kappa_form="curvature")
        _, after, averaged = lam_before_and_after(method, kappa=0.5)
        torch.testing.assert_close(after - averaged, torch.full_like(after, 0.5 / (2 * 4.0)))
