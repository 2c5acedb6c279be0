"""AuxNet against the Lagrangian written out over the whole network, and a plain SGD step of its networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hpcsplit.config.declared import declared_methods
from hpcsplit.methods.auxnet import MOMENTUM, AuxNet, auxiliary_network
from hpcsplit.methods.contract import StepResult
from hpcsplit.stage.stage import Stage
from hpcsplit.wire import lockstep
from tests.methods import tiny
from tests.methods.lagrangian import Lagrangian

SHAPE, BETA, LR = (1, 6, 6), 3.0, 0.1
WEIGHTS = "stage/auxnet/w/"


def step(method: AuxNet, stages: Sequence[Stage], images: Tensor, labels: Tensor) -> list[StepResult]:
    return lockstep.run([method.step(s, {}, tiny.batch_for(s, images, labels, method)) for s in stages])


def own_net(stage: Stage, method: AuxNet) -> tuple[nn.Module, dict[str, Tensor]]:
    net = auxiliary_network(SHAPE, stage.in_shape, method.aux_width, 2 if method.multiplier else 1)
    own = {n.removeprefix(WEIGHTS): w.detach().clone() for n, w in stage.carry.items() if n.startswith(WEIGHTS)}
    return net, own


def begun(method: AuxNet, count: int = 3, **options: Any) -> tuple[list[Stage], list[nn.Sequential]]:
    """Stages whose auxiliary networks have weights, momentum 0, and the parts with the stages' weights."""
    images, labels = tiny.batch_of(SHAPE)
    parts = tiny.conv_parts(count, SHAPE)
    stages = tiny.make_stages(parts, images, lr=0.0, **options)
    step(method, stages, images, labels)
    for stage in stages:
        stage.set_lr(LR)
        stage.carry.stage.below("auxnet/v/").clear()
    return stages, parts


@pytest.mark.parametrize("multiplier", [False, True])
def test_the_variables_are_corrected_as_those_of_the_lagrangian_and_learnt(multiplier: bool) -> None:
    method = AuxNet(beta=BETA, aux_warmup=0, multiplier=multiplier, eta_lambda=0.7, aux_width=3, aux_lr=2.0)
    stages, parts = begun(method)
    images, labels = tiny.batch_of(SHAPE, 4)
    nets = [None, *(own_net(stage, method) for stage in stages[1:])]
    made: list[Any] = [None]
    for each in nets[1:]:
        assert each
        values = functional_call(each[0], {n: w.requires_grad_() for n, w in each[1].items()}, (images,))
        made.append(values.chunk(2, 1) if multiplier else (values,))
    lam = [torch.empty(0), *(m[0].detach() for m in made[1:])]
    kappa = [torch.empty(0), *(m[1].detach() for m in made[1:])] if multiplier else []
    reference = Lagrangian(parts, tiny.boundaries(parts, images), images, labels, BETA, "mean", 1)
    slopes = [reference.slope("lam", k, lam, kappa) for k in (1, 2)]
    outputs = [part(value) for part, value in zip(parts, [images, *lam[1:]], strict=True)]
    step(method, stages, images, labels)
    for k in (1, 2):
        n = lam[k][0].numel()
        c = 2 * BETA / n
        new = lam[k] - 0.7 / c * slopes[k - 1]
        loss = ((made[k][0] - new) ** 2).mean()
        if multiplier:
            new_kappa = kappa[k] - method.eta_kappa * c * (new - outputs[k - 1].detach())
            loss = loss + ((made[k][1] - new_kappa) ** 2).mean()
        net = nets[k]
        assert net
        for (name, w), slope in zip(net[1].items(), torch.autograd.grad(loss, list(net[1].values())), strict=True):
            torch.testing.assert_close(stages[k].carry[WEIGHTS + name], (w - 2.0 * LR * slope).detach())


def test_momentum_is_that_of_sgd() -> None:
    method = AuxNet(aux_warmup=9, aux_width=3)
    stages, _ = begun(method, 2)
    images, labels = tiny.batch_of(SHAPE, 4)
    net, own = own_net(stages[1], method)
    plain: dict[str, Tensor] = {name: nn.Parameter(w) for name, w in own.items()}
    optimizer = torch.optim.SGD(plain.values(), lr=LR, momentum=MOMENTUM)
    target = tiny.activations([stages[0].blocks], images)[1]
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.mse_loss(functional_call(net, plain, (images,)), target).backward()
        optimizer.step()
        step(method, stages, images, labels)
    for name, p in plain.items():
        torch.testing.assert_close(stages[1].carry[WEIGHTS + name], p.detach())


def test_at_first_only_the_auxiliary_networks_learn() -> None:
    method = AuxNet(aux_warmup=40, aux_width=8)
    images, labels = tiny.batch_of(SHAPE, 6)
    stages = tiny.make_stages(tiny.conv_parts(3, SHAPE), images, lr=0.05)
    before = tiny.weights(stages)
    step(method, stages, images, labels)
    exact = tiny.activations([stage.blocks for stage in stages], images)

    def violations() -> list[float]:
        found = lockstep.run([method.made(s, tiny.batch_for(s, images, labels, method)) for s in stages])
        return [float((aux["lam"] - x).norm() / x.norm()) for aux, x in zip(found[1:], exact[1:], strict=False)]

    first = violations()
    for _ in range(39):
        step(method, stages, images, labels)
    assert all(late < 0.5 * early for late, early in zip(violations(), first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.weights(stages), strict=True))
    step(method, stages, images, labels)
    assert not any(torch.equal(a, b) for a, b in zip(before, tiny.weights(stages), strict=True))


@pytest.mark.parametrize(
    ("image", "boundary"),
    [((3, 32, 32), (16, 32, 32)), ((3, 32, 32), (64, 8, 8)), ((1, 28, 28), (8, 7, 7)), ((3, 15, 15), (4, 4, 4))],
)
def test_it_makes_the_shape_of_any_boundary(image: tuple[int, ...], boundary: tuple[int, ...]) -> None:
    for outputs in (1, 2):
        net = auxiliary_network(image, boundary, 5, outputs)
        made = net(torch.empty(2, *image, device="meta"))
        assert tuple(made.shape) == (2, outputs * boundary[0], *boundary[1:])


def test_vectors_are_made_too() -> None:
    method = AuxNet(aux_warmup=0, aux_width=4)
    images, labels = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    stages = tiny.make_stages(tiny.linear_parts(3), images)
    assert all(not result.aux for result in step(method, stages, images, labels))


def test_its_options_are_those_of_the_lagrangian_and_its_own() -> None:
    names = [o.name for o in declared_methods()["auxnet"].options]
    assert {"beta", "eta_lambda", "eta_kappa", "downsample", "multiplier", "aux_lr"} <= set(names)
    assert len(names) == len(set(names))
