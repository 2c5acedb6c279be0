"""Lipschitz constants against singular values of dense matrices, values by hand, and sampled difference quotients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.nets.catalog import build
from hpcsplit.nets.resnet import PostBlock, PreBlock, WideBlock
from hpcsplit.nets.shapes import trace
from hpcsplit.terms.lipschitz import NoEstimate, lipschitz

Map = Callable[[Tensor], Tensor]
EXACT: dict[str, Any] = {"iterations": 5000, "rel_change": 1e-13}


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with BatchNorm statistics and scales that are not those of the start."""
    random = torch.Generator().manual_seed(seed)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        for t, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.1, 3), (norm.weight, -2, 2)):
            assert t is not None
            t.data.uniform_(low, high, generator=random)
    return module.eval()


def largest_singular_value(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Of the dense matrix of a layer that is linear up to its bias; rows of the identity go in as samples."""
    n = math.prod(shape)
    with torch.no_grad():
        identity = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
        matrix = layer(identity) - layer(torch.zeros_like(identity))
    return float(torch.linalg.svdvals(matrix.flatten(1))[0])


def quotients(module: nn.Module, shape: tuple[int, ...], count: int = 200) -> Tensor:
    """‖f(a) − f(b)‖ / ‖a − b‖ of pairs that are far apart, close to each other, or differ in one element."""
    random = torch.Generator().manual_seed(3)
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    a = torch.randn(count, *shape, generator=random, dtype=dtype)
    step = torch.randn(count, *shape, generator=random, dtype=dtype)
    step[count // 3 : 2 * count // 3] *= 1e-2
    spikes = step[2 * count // 3 :].flatten(1)
    spikes *= F.one_hot(torch.randint(spikes.shape[1], (len(spikes),), generator=random), spikes.shape[1])
    with torch.no_grad():
        change = module(a + step) - module(a)
    ratios: Tensor = change.flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
    return ratios


# ------------------------------------------------------------------------------------------------ single layers


@pytest.mark.parametrize("bias", [True, False])
def test_linear_has_its_largest_singular_value(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(30, 20, bias=bias, dtype=torch.float64).eval()
    assert lipschitz(layer, (30,), **EXACT) == pytest.approx(
        float(torch.linalg.svdvals(layer.weight.detach())[0]), rel=1e-9
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 3, 3, padding=1), (2, 6, 5)),
        (nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), (2, 7, 7)),
        (nn.Conv2d(4, 4, 3, groups=2, dilation=2), (4, 7, 6)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
        (nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), (3, 4, 4)),
        (nn.AvgPool2d(3, stride=1, padding=1), (2, 6, 6)),
        (nn.AdaptiveAvgPool2d(1), (3, 4, 4)),
        (nn.BatchNorm2d(5), (5, 3, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "x".join(map(str, value)),
)
def test_linear_maps_have_the_norm_of_their_dense_matrix(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        layer.reset_parameters()  # it was made before the seed; two largest singular values alike take many iterations
    drawn(layer.double())
    assert lipschitz(layer, shape, **EXACT) == pytest.approx(largest_singular_value(layer, shape), rel=1e-6)


def test_the_default_accuracy_is_within_one_percent_below() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1).double().eval()
    ratio = lipschitz(layer, (8, 11, 11)) / largest_singular_value(layer, (8, 11, 11))
    assert 0.99 < ratio <= 1.0


def test_a_layer_of_zeros_has_constant_zero() -> None:
    layer = nn.Linear(3, 2).eval()
    nn.init.zeros_(layer.weight)
    assert lipschitz(layer, (3,)) == 0.0


@pytest.mark.parametrize(
    ("pool", "shape", "windows"),
    [
        (nn.MaxPool2d(2, stride=1), (1, 5, 5), 4),
        (nn.MaxPool2d(2), (1, 6, 6), 1),
        (nn.MaxPool2d(3, stride=2, padding=1), (1, 7, 7), 4),
        (nn.MaxPool2d((3, 2), stride=(1, 2)), (1, 6, 6), 3),
        (nn.MaxPool2d(3, stride=1), (1, 3, 4), 2),  # the image is too small for more
        (nn.MaxPool2d(2, stride=1, dilation=2), (1, 6, 6), 4),
        (nn.MaxPool1d(3, stride=1), (1, 9), 3),
        (nn.MaxPool1d(2, stride=1, padding=1), (1, 1), 2),  # one pixel, the first and the last
    ],
)
def test_a_pixel_counts_once_for_each_max_pooling_window_that_it_is_in(
    pool: nn.Module, shape: tuple[int, ...], windows: int
) -> None:
    """The value is reached: one pixel above all others is the maximum of all its windows."""
    estimate = lipschitz(pool.eval(), shape)
    assert estimate == pytest.approx(math.sqrt(windows))
    n = math.prod(shape)
    reached = pool(torch.eye(n).reshape(n, *shape)).flatten(1).norm(dim=1).max()
    assert float(reached) == pytest.approx(estimate)
    assert quotients(pool, shape).max() <= estimate * (1 + 1e-3)


# ------------------------------------------------------------------------------------------------ blocks and stages


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", [PostBlock, PreBlock, WideBlock])
def test_a_residual_block_is_its_branch_plus_its_shortcut(kind: type[nn.Module], stride: int) -> None:
    torch.manual_seed(2)
    channels = 3 * stride
    block: Any = drawn(kind(3, channels, stride)).double()
    size = 6 // stride
    layers = [(block.conv1, (3, 6, 6)), (block.conv2, (channels, size, size))]
    conv1, conv2 = (largest_singular_value(layer, shape) for layer, shape in layers)
    bn1, bn2 = (
        float((norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()).max())
        for norm in (block.bn1, block.bn2)
    )
    expected = 1 + conv1 * bn1 * conv2 * bn2
    if getattr(block, "project", None) is not None:  # it starts behind the first BatchNorm
        expected = bn1 * (largest_singular_value(block.project, (3, 6, 6)) + conv1 * bn2 * conv2)
    assert lipschitz(block, (3, 6, 6), **EXACT) == pytest.approx(expected, rel=1e-5)
    assert quotients(block, (3, 6, 6)).max() <= expected * (1 + 1e-3)


@pytest.mark.parametrize(
    ("name", "block", "shape"),
    [
        ("resnet8", "post", (3, 16, 16)),
        ("resnet8", "pre", (3, 16, 16)),
        ("wrn-10-1", "post", (1, 12, 12)),
        ("mlp", "post", (1, 14, 14)),
        ("cnn", "post", (1, 8, 8)),
        ("tssm-resnet", "post", (3, 32, 32)),
    ],
)
def test_no_sampled_quotient_of_a_network_is_above_the_estimate(
    name: str, block: str, shape: tuple[int, int, int]
) -> None:
    """Of its second half and of each of the blocks there."""
    torch.manual_seed(4)
    net = build(name, shape, 10, block=block, depth=3, width=32)
    drawn(net)
    shapes = [shape, *(each.out_shape for each in trace(net, shape))]
    half = len(net) // 2
    for part, shape_in in [(net[half:], shapes[half]), *zip(net[half:], shapes[half:-1], strict=True)]:
        estimate = lipschitz(part.eval(), shape_in)
        assert 0 < quotients(part, shape_in, 60).max() <= estimate * (1 + 1e-3)


class Torchvisions(nn.Module):
    """The idioms of torchvision's residual block and head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.tail = nn.Sequential(nn.Linear(32, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.conv(x)
        out += identity
        out = self.relu(out)
        y: Tensor = self.tail(out.view(out.size(0), -1)) + F.relu(self.tail(torch.flatten(x, 1)))
        return y


def test_any_module_whose_graph_has_known_layers() -> None:
    torch.manual_seed(5)
    net = Torchvisions().double().eval()
    conv, tail = largest_singular_value(net.conv, (2, 4, 4)), largest_singular_value(net.tail[0], (32,))
    estimate = lipschitz(net, (2, 4, 4), **EXACT)
    assert estimate == pytest.approx((conv + 1) * tail + tail, rel=1e-6)
    assert quotients(net, (2, 4, 4)).max() <= estimate


@pytest.mark.parametrize("shifted", [lambda x: x + 0.5, lambda x: 0.5 + x, lambda x: x - 0.5, lambda x: x + x + 0.5])
def test_a_number_that_is_added_counts_nothing(shifted: Map) -> None:
    expected = (shifted(torch.ones(1)) - shifted(torch.zeros(1))).item()
    assert lipschitz(nn.Sequential(nn.ReLU(), Calls(shifted)).eval(), (2, 4, 4)) == expected


# ------------------------------------------------------------------------------------------------ what has no rule


class Calls(nn.Module):
    """Applies a function to its input."""

    def __init__(self, function: Map) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class MyConv(nn.Conv2d):
    """A subclass may do anything in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.BatchNorm2d(2, track_running_stats=False), "BatchNorm2d without running statistics"),
        (Calls(torch.exp), "exp in Calls"),
        (Calls(lambda x: x * x), "mul in Calls"),
        (Calls(lambda x: x + x.mean()), "mean in Calls"),
        (Calls(lambda x: x + x[:, :1]), "add in Calls"),  # a tensor that is copied counts twice
        (Calls(lambda x: x[:, [0, 0]]), "getitem in Calls"),
        (Calls(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), "pad in Calls"),
        (Calls(lambda x: x if x.sum() > 0 else -x), "Calls"),
        (MyConv(2, 2, 1), "conv2d in MyConv"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_an_unknown_layer_is_named(module: nn.Module, named: str) -> None:
    with pytest.raises(NoEstimate) as failure:
        lipschitz(nn.Sequential(nn.ReLU(), module).eval(), (2, 4, 4))
    assert str(failure.value) == named


def test_nothing_is_changed_and_nothing_drawn() -> None:
    net = drawn(build("resnet8", (1, 12, 12), 10))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    random = torch.get_rng_state()
    first = lipschitz(net, (1, 12, 12))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    torch.manual_seed(9)
    assert lipschitz(net, (1, 12, 12)) == first
