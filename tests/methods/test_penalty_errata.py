"""Where the paper disagrees with itself: which reading the program has, shown by what the other one would do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpcsplit.methods.penalty import AugmentedLagrangian, Penalty
from tests.methods.tiny import activations, batch_of, conv_parts, make_stages, random_rows, step

SHAPE = (1, 6, 6)


def silent_network() -> list[torch.nn.Sequential]:
    """Two stages whose logits are always 0: φ has no slope in λ, so only β ψ moves it."""
    parts = conv_parts(2, SHAPE)
    for p in parts[1][-1].parameters():
        torch.nn.init.zeros_(p)
    return parts


def lam_before_and_after(method: Penalty) -> tuple[Tensor, Tensor, Tensor]:
    """Λ of the last stage before a step and after it, and the averaged activation that it stands for."""
    parts = silent_network()
    images, labels = batch_of(SHAPE)
    stages = make_stages(parts, images)
    rows = random_rows(method, stages, len(images))
    x = activations(parts, images)[1]
    averaged = x if method.downsample == 1 else F.avg_pool2d(x, 2)
    return rows["lam"][1], step(method, stages, images, labels, rows)[1].aux["lam"], averaged


@pytest.mark.parametrize("psi", ["mean", "sum"])
@pytest.mark.parametrize("downsample", [1, 2])
def test_1_the_last_stage_has_the_penalty_term(psi: str, downsample: int) -> None:
    """With η_λ = 1 it reaches avg x at once; Algorithm 1 as printed would leave Λ where it was."""
    before, after, x = lam_before_and_after(Penalty(psi=psi, downsample=downsample))
    torch.testing.assert_close(after, x)
    assert not torch.allclose(before, x)


def kappa_step(form: str, psi: str) -> Tensor:
    method = AugmentedLagrangian(beta=100.0, psi=psi, eta_kappa=1.0, eta_kappa_form=form)
    parts = conv_parts(2, SHAPE)
    images, labels = batch_of(SHAPE)
    stages = make_stages(parts, images)
    rows = random_rows(method, stages, len(images))
    rows["kappa"][1].zero_()
    return step(method, stages, images, labels, rows)[1].aux["kappa"]


def test_2_the_printed_multiplier_step_is_40_000_times_smaller_at_beta_100() -> None:
    torch.testing.assert_close(kappa_step("curvature", "sum"), 40_000 * kappa_step("printed", "sum"))


def test_3_beta_with_the_mean_is_worth_beta_over_n_with_the_sum() -> None:
    parts = conv_parts(3, SHAPE)
    images, labels = batch_of(SHAPE)
    n = 2 * 6 * 6
    found = []
    for method in (Penalty(beta=50.0, psi="mean"), Penalty(beta=50.0 / n, psi="sum")):
        stages = make_stages(parts, images)
        found.append(step(method, stages, images, labels, random_rows(method, stages, len(images)))[2].aux["lam"])
    torch.testing.assert_close(*found)


def test_3_the_default_is_the_mean() -> None:
    assert Penalty().psi == AugmentedLagrangian().psi == "mean"


def test_4_dividing_by_two_beta_alone_multiplies_the_error_by_minus_3_under_downsampling() -> None:
    """The gradient of β ψ is 4 · 2β (Λ − avg x): what 1/(2β) makes of it is η_λ = 4 here."""
    before, after, x = lam_before_and_after(Penalty(psi="sum", downsample=2, eta_lambda=4.0))
    torch.testing.assert_close(after - x, -3 * (before - x))


def test_6_downsampled_multipliers_act_on_every_pixel_of_their_cell() -> None:
    """A constant Κ moves Λ as the same κ on all pixels moves λ: by η κ / (2β), however many pixels a cell has."""
    moves = []
    for downsample in (1, 2):
        method = AugmentedLagrangian(beta=4.0, psi="sum", downsample=downsample, eta_kappa_form="curvature")
        parts = silent_network()
        images, labels = batch_of(SHAPE)
        stages = make_stages(parts, images)
        rows = random_rows(method, stages, len(images))
        rows["kappa"][1].fill_(0.5)
        x = activations(parts, images)[1]
        averaged = x if downsample == 1 else F.avg_pool2d(x, 2)
        moves.append(step(method, stages, images, labels, rows)[1].aux["lam"] - averaged)
    for move in moves:
        torch.testing.assert_close(move, torch.full_like(move, 0.5 / (2 * 4.0)))
