"""Every update of DS-SPH, (25) and (28)-(30), against autograd of the per-sample Lagrangian in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from hpcsplit.methods.contract import StepResult
from hpcsplit.methods.penalty import AugmentedLagrangian, Penalty
from hpcsplit.stage.stage import Stage
from tests.methods import tiny
from tests.methods.lagrangian import Lagrangian

Layout = tuple[list[nn.Sequential], tuple[int, ...], int]  # parts, shape of an image, factor
SHARP: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
ETA_LAMBDA, ETA_KAPPA, BETA, LR = 0.7, 0.3, 3.0, 0.2


@dataclass(frozen=True)
class Case:
    """One step of hpcsplit, and the Lagrangian at the same point before it."""

    reference: Lagrangian
    rows: dict[str, list[torch.Tensor]]
    stages: list[Stage]
    results: list[StepResult]

    @property
    def kappa(self) -> list[torch.Tensor]:
        return self.rows.get("kappa", [])

    @property
    def inner(self) -> range:
        return range(1, len(self.stages))


def take_step(
    cls: type[Penalty], parts: list[nn.Sequential], shape: tuple[int, ...], psi: str, factor: int, **options: Any
) -> Case:
    method = cls(beta=BETA, psi=psi, eta_lambda=ETA_LAMBDA, downsample=factor, **options)
    images, labels = tiny.batch_of(shape)
    stages = tiny.make_stages(parts, images, lr=LR)
    rows = tiny.random_rows(method, stages, len(images))
    reference = Lagrangian(copy.deepcopy(parts), tiny.boundaries(parts, images), images, labels, BETA, psi, factor)
    return Case(reference, rows, stages, tiny.step(method, stages, images, labels, rows))


@pytest.fixture(params=["mean", "sum"])
def psi(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(
    params=[
        (2, (1, 6, 4), 1),
        (3, (1, 6, 4), 2),
        (2, (1, 7, 7), 2),
        (3, (1, 7, 5), 1),
        (3, (1, 7, 7), 2),
        (4, (1, 5, 4), 2),
    ]
)
def layout(request: pytest.FixtureRequest) -> Layout:
    count, shape, factor = request.param
    return tiny.conv_parts(count, shape), shape, factor


@pytest.fixture(params=[Penalty, AugmentedLagrangian])
def case(request: pytest.FixtureRequest, layout: Layout, psi: str) -> Case:
    parts, shape, factor = layout
    options = {"eta_kappa_form": "curvature"} if request.param is AugmentedLagrangian else {}
    return take_step(request.param, parts, shape, psi, factor, **options)


def test_lam_descends_the_whole_lagrangian_of_its_sample_by_eta_over_the_curvature(case: Case) -> None:
    for k in case.inner:
        slope = case.reference.slope("lam", k, case.rows["lam"], case.kappa)
        expected = case.rows["lam"][k] - ETA_LAMBDA / case.reference.curvature(k) * slope
        torch.testing.assert_close(case.results[k].aux["lam"], expected, **SHARP)


def test_weights_take_the_plain_optimizer_step_on_the_batch_mean(case: Case) -> None:
    twins = case.reference.parts
    optimizer = torch.optim.SGD([p for part in twins for p in part.parameters()], lr=LR, momentum=0.9)
    case.reference(case.rows["lam"], case.kappa).mean().backward()
    optimizer.step()
    torch.testing.assert_close(tiny.weights(case.stages), [p.detach() for t in twins for p in t.parameters()], **SHARP)


def test_the_stages_before_the_first_boundary_have_no_variables(case: Case) -> None:
    assert case.results[0].aux == {}


def test_the_terms_that_the_stages_report_add_up_to_the_lagrangian(case: Case) -> None:
    reported = sum(value for result in case.results for value in result.tally.terms.values())
    ref, lam_times_kappa = case.reference, 0.0
    for k in case.inner if case.kappa else ():
        kappa, lam = (ref.on_pixels(rows[k], ref.shapes[k]) for rows in (case.kappa, case.rows["lam"]))
        lam_times_kappa += float((kappa * lam).sum())
    with torch.no_grad():
        assert reported - lam_times_kappa == pytest.approx(float(ref(case.rows["lam"], case.kappa).sum()))


def test_the_reported_gap_is_that_of_the_boundary_behind_the_stage(case: Case) -> None:
    ref, lam = case.reference, case.rows["lam"]
    inputs = [ref.images, *(ref.on_pixels(lam[k], ref.shapes[k]) for k in case.inner)]
    for k in case.inner:
        with torch.no_grad():
            gap = inputs[k] - ref.parts[k - 1](inputs[k - 1])
        tally = case.results[k - 1].tally
        assert tally.gap_sq == pytest.approx(float(gap.square().sum()))
        assert tally.aux_sq == pytest.approx(float(inputs[k].square().sum()))
        assert tally.samples == len(ref.images)


@pytest.mark.parametrize("form", ["curvature", "printed"])
def test_kappa_ascends_the_lagrangian_at_the_new_lam(layout: Layout, psi: str, form: str) -> None:
    """The stored Κ has slope −m (Λ^new − avg x): (30) goes η c/m along slope/m, or η/(2β) where it is printed."""
    parts, shape, factor = layout
    case = take_step(AugmentedLagrangian, parts, shape, psi, factor, eta_kappa=ETA_KAPPA, eta_kappa_form=form)
    for k in case.inner:
        moved = list(case.rows["lam"])
        moved[k] = case.results[k].aux["lam"]
        m, c = case.reference.pixels(k), case.reference.curvature(k)
        slope_per_pixel = case.reference.slope("kappa", k, moved, case.kappa) / m
        size = ETA_KAPPA * (c / m if form == "curvature" else 1 / (2 * BETA))
        torch.testing.assert_close(case.results[k].aux["kappa"], case.kappa[k] + size * slope_per_pixel, **SHARP)


@pytest.mark.parametrize("eta", [ETA_KAPPA, 1.0])
def test_kappa_goes_to_where_the_local_loss_is_stationary_and_lam_to_the_activation(
    layout: Layout, psi: str, eta: float
) -> None:
    """Without the penalty, the slope in Λ at the old point is g - m Κ: it shrinks by 1 - η_κ.  Λ descends the rest."""
    parts, shape, factor = layout
    case = take_step(AugmentedLagrangian, parts, shape, psi, factor, eta_kappa=eta)
    ref = case.reference
    for k in case.inner:
        moved = list(case.kappa)
        moved[k] = case.results[k].aux["kappa"]
        penalty = ref.curvature(k) * (case.rows["lam"][k] - ref.averaged(k, case.rows["lam"]))
        before, after = (ref.slope("lam", k, case.rows["lam"], kappa) for kappa in (case.kappa, moved))
        torch.testing.assert_close(after - penalty, (1 - eta) * (before - penalty), rtol=1e-10, atol=1e-10)
        expected = case.rows["lam"][k] - ETA_LAMBDA / ref.curvature(k) * penalty
        torch.testing.assert_close(case.results[k].aux["lam"], expected, **SHARP)


@pytest.mark.parametrize("cls", [Penalty, AugmentedLagrangian])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_vectors_are_variables_too(cls: type[Penalty], count: int, psi: str) -> None:
    options = {"eta_kappa_form": "curvature"} if cls is AugmentedLagrangian else {}
    case = take_step(cls, tiny.linear_parts(count), (5,), psi, 1, **options)
    for k in case.inner:
        slope = case.reference.slope("lam", k, case.rows["lam"], case.kappa)
        expected = case.rows["lam"][k] - ETA_LAMBDA / case.reference.curvature(k) * slope
        torch.testing.assert_close(case.results[k].aux["lam"], expected, **SHARP)


def test_the_step_is_the_same_from_averaged_and_from_full_resolution_activations() -> None:
    """Erratum 6: the exchange of averages is no approximation.  (29) with ∂ψ by autograd on the pixels."""
    shape = (1, 7, 6)
    method = Penalty(beta=BETA, psi="sum", eta_lambda=ETA_LAMBDA, downsample=2)
    parts = tiny.conv_parts(2, shape)
    images, labels = tiny.batch_of(shape)
    last = tiny.make_stages(parts, images)[1]
    reference = Lagrangian(parts, tiny.boundaries(parts, images), images, labels, BETA, "sum", 2)
    x_full = tiny.activations(parts, images)[1]
    lam = tiny.random_rows(method, [last], len(images))["lam"][0].requires_grad_()
    g = torch.randn(lam.shape, dtype=torch.float64)

    (pull,) = torch.autograd.grad(BETA * (reference.on_pixels(lam, (2, 7, 6)) - x_full).square().sum(), lam)
    full = lam.detach() - ETA_LAMBDA / reference.curvature(1) * (pull + g)

    x_averaged = torch.nn.functional.avg_pool2d(x_full, 2, ceil_mode=True)
    averaged = method.correct(last, lam.detach(), None, g, x_averaged)["lam"]
    torch.testing.assert_close(averaged, full, **SHARP)
