"""What holds for DS-SPH whatever the numbers: fixed points, independence of samples, the frozen control, traffic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpcsplit.engine.epochs import receive_copies, send_copies
from hpcsplit.methods.contract import own_variables
from hpcsplit.methods.penalty import AugmentedLagrangian, Penalty
from hpcsplit.stage.stage import Stage
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Meter, Program, Traffic
from tests.methods import tiny

SHAPE = (1, 6, 6)
STATIONARY = partial(AugmentedLagrangian, downsample=1)
CLASSICAL = partial(STATIONARY, eta_kappa_form="curvature")


# ------------------------------------------------------------------------------------------------ AL and penalty


def test_al_with_zero_multipliers_is_the_penalty_method_bit_for_bit() -> None:
    parts = [part.float() for part in tiny.conv_parts(3, SHAPE)]
    images, labels = tiny.batch_of(SHAPE, dtype=torch.float32)
    found = []
    for method in (Penalty(beta=1.0), CLASSICAL(eta_kappa=0.0)):
        stages = tiny.make_stages(parts, images)
        rows = tiny.random_rows(method, stages, len(images))
        for kappa in rows.get("kappa", []):
            kappa.zero_()
        for _ in range(3):
            results = tiny.step(method, stages, images, labels, rows)
            rows["lam"] = [torch.empty(0), *(r.aux["lam"] for r in results[1:])]
        found.append([*rows["lam"], *tiny.weights(stages)])
    torch.testing.assert_close(*found, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ fixed points


@pytest.mark.parametrize("psi", ["mean", "sum"])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("cls", [Penalty, AugmentedLagrangian, CLASSICAL])
def test_a_feasible_point_without_gradient_stays_put_exactly(
    cls: Callable[..., Penalty], factor: int, psi: str
) -> None:
    """Zero last layer, one image with labels 0 and 1 equally often: the loss has no slope in any weight or λ.

    Images are constant and convolutions 1 x 1, so that the activations are constant in every cell.
    """
    parts = tiny.conv_parts(3, (1, 5, 5), kernel=1, classes=2)
    for p in parts[-1][-1].parameters():
        torch.nn.init.zeros_(p)
    images = torch.full((4, 1, 5, 5), 0.37, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    method = cls(psi=psi, downsample=factor)
    stages = tiny.make_stages(parts, images)
    rows = tiny.random_rows(method, stages, 4)
    for k, x in enumerate(tiny.activations(parts, images)[1:-1], start=1):
        rows["lam"][k] = x[:, :, ::factor, ::factor].clone()
        if "kappa" in rows:
            rows["kappa"][k].zero_()
    before = tiny.weights(stages)
    results = tiny.step(method, stages, images, labels, rows)
    for k in (1, 2):
        torch.testing.assert_close(results[k].aux, {name: rows[name][k] for name in rows}, rtol=0, atol=0)
    torch.testing.assert_close(before, tiny.weights(stages), rtol=0, atol=0)


def exact_point(lr: float) -> tuple[list[Stage], dict[str, list[Tensor]], Tensor, Tensor, list[Tensor]]:
    """λ = x and κ = the exact per-sample gradient at every boundary, with the whole network's weight gradients."""
    parts = tiny.conv_parts(4, SHAPE)
    images, labels = tiny.batch_of(SHAPE)
    stages = tiny.make_stages(parts, images, lr=lr)
    x = [images]
    for part in parts:
        x.append(part(x[-1]))
    inner = x[1:-1]
    per_sample = torch.autograd.grad(F.cross_entropy(x[-1], labels, reduction="sum"), inner, retain_graph=True)
    parameters = [p for part in parts for p in part.parameters()]
    exact = torch.autograd.grad(F.cross_entropy(x[-1], labels), parameters)
    nothing = torch.empty(0)
    rows = {"lam": [nothing, *(v.detach() for v in inner)], "kappa": [nothing, *per_sample]}
    return stages, rows, images, labels, list(exact)


@pytest.mark.parametrize("cls", [STATIONARY, CLASSICAL])
def test_lam_and_kappa_stay_put_where_lam_is_x_and_kappa_is_the_exact_gradient(cls: Callable[..., Penalty]) -> None:
    stages, rows, images, labels, _ = exact_point(lr=0.1)
    results = tiny.step(cls(eta_kappa=1.0), stages, images, labels, rows)
    for k in range(1, 4):
        torch.testing.assert_close(results[k].aux, {name: rows[name][k] for name in rows}, rtol=1e-10, atol=1e-12)


def test_there_every_stage_has_the_weight_gradient_of_exact_back_propagation() -> None:
    stages, rows, images, labels, exact = exact_point(lr=0.1)
    tiny.step(STATIONARY(), stages, images, labels, rows)
    torch.testing.assert_close([p.grad for s in stages for p in s.parameters], exact, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------ samples


@pytest.mark.parametrize("downsample", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_variables_of_a_sample_do_not_depend_on_the_rest_of_the_batch(size: int, downsample: int) -> None:
    method = AugmentedLagrangian(downsample=downsample)
    parts = tiny.conv_parts(3, SHAPE)
    images, labels = tiny.batch_of(SHAPE, size=8)
    rows = tiny.random_rows(method, tiny.make_stages(parts, images), 8)
    whole = tiny.step(method, tiny.make_stages(parts, images), images, labels, rows)
    some = {name: [t[:size] for t in by_stage] for name, by_stage in rows.items()}
    part = tiny.step(method, tiny.make_stages(parts, images), images[:size], labels[:size], some)
    for k in (1, 2):
        first = {name: t[:size] for name, t in whole[k].aux.items()}
        torch.testing.assert_close(part[k].aux, first, rtol=1e-10, atol=1e-12)


def test_the_label_moves_lam_by_its_own_gradient_not_by_a_batch_th_of_it() -> None:
    method = Penalty(beta=1.0, psi="sum", eta_lambda=1.0)
    parts = tiny.conv_parts(2, SHAPE)
    images, labels = tiny.batch_of(SHAPE, size=6)
    stages = tiny.make_stages(parts, images)
    rows = tiny.random_rows(method, stages, 6)
    x = tiny.activations(parts, images)[1]
    moved_by_label = tiny.step(method, stages, images, labels, rows)[1].aux["lam"] - x
    lam = rows["lam"][1][2:3].requires_grad_()
    (alone,) = torch.autograd.grad(F.cross_entropy(parts[1](lam), labels[2:3]), lam)
    torch.testing.assert_close(moved_by_label[2:3], -alone / 2)


# ------------------------------------------------------------------------------------------------ frozen control


@pytest.mark.parametrize("cls", [Penalty, AugmentedLagrangian])
def test_frozen_leaves_all_weights_but_the_last_stages_bit_for_bit(cls: type[Penalty]) -> None:
    parts = tiny.conv_parts(3, SHAPE)
    before = [[p.detach() for p in part.parameters()] for part in parts]
    after = [tiny.weights([s]) for s in tiny.first_step(cls(), parts, SHAPE, frozen=True)[0]]
    torch.testing.assert_close(before[:2], after[:2], rtol=0, atol=0)
    assert not all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


def test_frozen_changes_neither_the_variables_nor_the_last_stage() -> None:
    found = []
    for frozen in (False, True):
        stages, _, results = tiny.first_step(Penalty(), tiny.conv_parts(3, SHAPE), SHAPE, frozen=frozen)
        found.append([*tiny.weights(stages[2:]), results[1].aux["lam"], results[2].aux["lam"]])
    torch.testing.assert_close(*found, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ coefficients


def test_beta_grows_by_its_factor_for_each_parallel_epoch_up_to_its_limit() -> None:
    """Even where the power is beyond a float; without growth it stays, even above its limit."""
    method = Penalty(beta=2.0, beta_growth=3.0, beta_max=50.0)
    assert [method.at(epoch).beta for epoch in range(5)] == [2.0, 6.0, 18.0, 50.0, 50.0]
    assert Penalty(beta_growth=1e3).at(500).beta == 1e6
    assert Penalty(beta=2e7).at(0) == Penalty(beta=2e7).at(99) == Penalty(beta=2e7)


def test_the_other_coefficients_stay_when_beta_grows() -> None:
    method = AugmentedLagrangian(beta_growth=2.0, eta_kappa=0.7, downsample=2, psi="sum")
    grown = method.at(1)
    assert isinstance(grown, AugmentedLagrangian)
    assert (grown.eta_kappa, grown.downsample, grown.psi, grown.beta) == (0.7, 2, "sum", 2.0)


# ------------------------------------------------------------------------------------------------ adjoint


@pytest.mark.parametrize("psi", ["mean", "sum"])
@pytest.mark.parametrize("downsample", [1, 2])
@pytest.mark.parametrize("cls", [Penalty, AugmentedLagrangian])
def test_adjoint_is_the_slope_of_the_local_loss_at_the_output(cls: type[Penalty], downsample: int, psi: str) -> None:
    method = cls(beta=3.0, psi=psi, downsample=downsample)
    parts = tiny.conv_parts(2, (1, 7, 6))
    images, _ = tiny.batch_of((1, 7, 6))
    stages = tiny.make_stages(parts, images)
    aux = tiny.aux_of(stages[0], tiny.random_rows(method, stages, len(images)))
    x = tiny.activations(parts, images)[1].requires_grad_()

    def pixels(stored: Tensor) -> Tensor:
        return torch.kron(stored, torch.ones(1, 1, downsample, downsample, dtype=stored.dtype))[:, :, :7, :6]

    square = (pixels(aux["next_lam"]) - x).square()
    penalty = 3.0 * (square.flatten(1).mean(1) if psi == "mean" else square.flatten(1).sum(1))
    multiplier = (pixels(aux["next_kappa"]) * x).flatten(1).sum(1) if "next_kappa" in aux else torch.zeros(5)
    (whole,) = torch.autograd.grad((penalty + multiplier).sum(), x, retain_graph=True)
    (penalty_alone,) = torch.autograd.grad(penalty.sum(), x)

    used, penalty_part = method.adjoint(stages[0], aux, x.detach())
    torch.testing.assert_close(used, whole)
    torch.testing.assert_close(penalty_part, penalty_alone)


# ------------------------------------------------------------------------------------------------ traffic


def traffic(cls: type[Penalty], downsample: int) -> list[Traffic]:
    """What every stage has sent in one step, the engine's copies of the rows included."""
    method = cls(downsample=downsample)
    parts = [part.float() for part in tiny.conv_parts(3, (1, 8, 8))]
    images, labels = tiny.batch_of((1, 8, 8), dtype=torch.float32)
    stages = tiny.make_stages(parts, images)
    rows = tiny.random_rows(method, stages, len(images))

    def program(stage: Stage) -> Program:
        own = own_variables(method, stage.place)
        job: Any = SimpleNamespace(stage=stage, method=method, own_variables=lambda: own, aux_dtype=torch.float32)
        mine = {v.name: rows[v.name][stage.index].clone() for v in own}
        yield from send_copies(job, mine, 0)
        copies = yield from receive_copies(job, len(images), 0)
        yield from method.step(stage, mine | copies, tiny.batch_for(stage, images, labels))
        return (yield Meter())

    return lockstep.run([program(stage) for stage in stages])


@pytest.mark.parametrize(("cls", "variables"), [(Penalty, 1), (AugmentedLagrangian, 2)])
def test_a_step_sends_x_to_the_next_stage_and_the_variables_to_the_stage_before(
    cls: type[Penalty], variables: int
) -> None:
    boundary_bytes = 5 * 2 * 8 * 8 * 4
    sent = traffic(cls, 1)
    assert [t.sent_bytes_next for t in sent] == [boundary_bytes, boundary_bytes, 0]
    assert [t.sent_bytes_prev for t in sent] == [0, variables * boundary_bytes, variables * boundary_bytes]


@pytest.mark.parametrize("cls", [Penalty, AugmentedLagrangian])
def test_downsampling_sends_a_quarter_of_the_bytes_both_ways(cls: type[Penalty]) -> None:
    for full, quarter in zip(traffic(cls, 1), traffic(cls, 2), strict=True):
        assert 4 * quarter.sent_bytes_next == full.sent_bytes_next
        assert 4 * quarter.sent_bytes_prev == full.sent_bytes_prev


# ------------------------------------------------------------------------------------------------ the first stage


def test_a_first_stage_may_have_no_weights() -> None:
    parts = [torch.nn.Sequential(torch.nn.AvgPool2d(2)).double(), *tiny.conv_parts(2, (1, 3, 3))]
    stages, _, results = tiny.first_step(Penalty(), parts, SHAPE)
    assert stages[1].in_shape == (1, 3, 3)
    assert results[1].aux["lam"].isfinite().all()


def test_variables_start_anew_every_so_many_parallel_epochs() -> None:
    assert [Penalty(refresh_every=2).restarts(k) for k in range(5)] == [True, False, True, False, True]
    assert not any(Penalty().restarts(k) for k in range(5))
