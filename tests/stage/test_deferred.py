"""Weight gradients that wait are those of the plain backward pass, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpcsplit.stage.deferred import DeferredGradients

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "no bias": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0)),
    "groups": lambda: nn.Conv2d(4, 6, (3, 1), groups=2),
    "dilation": lambda: nn.Conv2d(4, 6, 3, dilation=2),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 5, stride=2)),
    "three dimensions": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 3, 3))),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4 * 81, 5)),
    "linear on rows": lambda: nn.Linear(9, 5, bias=False),
    "named padding stays whole": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "other padding": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "a block": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)
    ),
}
WHOLE = ("named padding stays whole",)


def ready(look: Callable[[], object] = lambda: None) -> DeferredGradients:
    """A queue that has seen its first pass."""
    deferred = DeferredGradients()
    with deferred.active():
        look()
    return deferred


def passed(layer: nn.Module, deferred: DeferredGradients, x: Tensor) -> None:
    """Forward and backward."""
    with deferred.active():
        y = layer(x)
    y.sum().backward()


def gradients(
    layer: nn.Module, pieces: list[Tensor], deferred: DeferredGradients | None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """At the inputs, and of the weights after all pieces."""
    at_inputs = []
    for piece in pieces:
        x = piece.clone().requires_grad_()
        if deferred is None:
            layer(x).square().sum().backward()
        else:
            with deferred.active():
                y = layer(x)
            y.square().sum().backward()
        assert x.grad is not None
        at_inputs.append(x.grad)
    if deferred is not None:
        deferred.finish()
    return at_inputs, [p.grad for p in layer.parameters()]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_bits_as_the_plain_backward_pass(name: str, channels_last: bool) -> None:
    torch.manual_seed(1)
    plain = LAYERS[name]()
    if channels_last and name != "three dimensions":
        plain = plain.to(memory_format=torch.channels_last)
    other = copy.deepcopy(plain)
    pieces = [torch.randn(n, 4, 9, 9) for n in (5, 4)]
    if channels_last:
        pieces = [piece.to(memory_format=torch.channels_last) for piece in pieces]
    deferred = ready()
    expected, found = gradients(plain, pieces, None), gradients(other, pieces, deferred)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, check_stride=True)


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_but_weight_gradients_waits(name: str) -> None:
    layer, deferred = LAYERS[name](), ready()
    x = torch.randn(3, 4, 9, 9, requires_grad=True)
    passed(layer, deferred, x)
    assert x.grad is not None
    halved = [m for m in layer.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)]
    assert len(deferred) == (0 if name in WHOLE else len(halved))
    for module in reversed(halved) if name not in WHOLE else ():
        assert module.weight.grad is None
        assert deferred.one()
    assert not deferred.one()
    assert all(p.grad is not None for p in layer.parameters())


def test_outside_and_without_a_gradient_nothing_waits() -> None:
    layer, deferred = nn.Conv2d(4, 2, 3), ready()
    x = torch.randn(3, 4, 9, 9, requires_grad=True)
    layer(x).sum().backward()
    with deferred.active(), torch.no_grad():
        layer(x)
    with deferred.active():
        layer.requires_grad_(False)
        layer(x).sum().backward()
    assert len(deferred) == 0


def test_a_weight_with_a_hook_takes_its_gradient_at_once() -> None:
    layer, deferred, seen = nn.Linear(3, 2), ready(), []
    layer.weight.register_hook(lambda g: seen.append(g))
    passed(layer, deferred, torch.randn(4, 3))
    assert len(deferred) == 0
    assert len(seen) == 1


def test_without_a_batch_and_under_autocast_a_layer_stays_whole() -> None:
    layer, deferred = nn.Conv2d(4, 2, 3), ready()
    x = torch.randn(4, 9, 9)
    with deferred.active():
        y = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = layer(x[None])
    (y.sum() + z.float().sum()).backward()
    assert len(deferred) == 0
    assert layer.weight.grad is not None


def test_arguments_may_be_named() -> None:
    weight, deferred = nn.Parameter(torch.randn(2, 4, 3, 3)), ready()
    x = torch.randn(3, 4, 9, 9)
    with deferred.active():
        y = nn.functional.conv2d(input=x, weight=weight, padding=1, stride=(2, 1))
    y.sum().backward()
    assert len(deferred) == 1
    deferred.finish()
    assert weight.grad is not None


def test_a_weight_that_is_made_in_the_pass_stays_whole() -> None:
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    deferred = ready()
    passed(layer, deferred, torch.randn(4, 3))
    assert len(deferred) == 0
    assert all(p.grad is not None for p in layer.parameters())


class Shared(nn.Module):
    """Uses its weights several times: `how` says what for."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.second = how, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x).tanh()
        z: Tensor
        if self.how == "three times":
            z = self.first(self.second(self.first(y)).tanh()) + self.second(y)
        elif self.how == "a product":
            z = self.second(y) @ self.first.weight + self.second.bias
        elif self.how == "a branch without a gradient":
            z = self.second(y) + self.first(y).detach()
        elif self.how == "as its input":
            z = y + self.second(self.first.weight).mean(0)
        else:
            z = checkpoint(self.second, y, use_reentrant=self.how == "reentrant checkpoint")
        return z


@pytest.mark.parametrize(
    ("how", "waits"),
    [
        ("three times", 5),
        ("a product", 0),
        ("a branch without a gradient", 2),
        ("as its input", 1),
        ("checkpoint", 1),
        ("reentrant checkpoint", 1),
    ],
)
def test_weights_that_are_used_several_times_or_kept_in_another_way(how: str, waits: int) -> None:
    """The bits of three passes; what cannot be put together in autograd's order is not put off."""
    torch.manual_seed(2)
    plain = Shared(how)
    other, pieces = copy.deepcopy(plain), list(torch.randn(3, 8, 16))
    deferred = ready(lambda: other(pieces[0]))
    expected, found = gradients(plain, pieces, None), gradients(other, pieces, deferred)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert deferred.count == 3 * waits


def test_the_first_pass_only_looks() -> None:
    layer, deferred = nn.Linear(3, 2), DeferredGradients()
    for waits in (0, 1):
        passed(layer, deferred, torch.randn(4, 3))
        assert len(deferred) == waits


def test_what_is_dropped_is_gone() -> None:
    layer, deferred = nn.Linear(3, 2), ready()
    passed(layer, deferred, torch.randn(4, 3))
    deferred.drop()
    assert not deferred.one()
    assert layer.weight.grad is None
