"""The ResNet-like network of TSSM, section 3.2.2: its layers, its sizes and the cuts that the paper makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build
from hpcsplit.nets.shapes import trace
from hpcsplit.plan.blocks import block_costs
from hpcsplit.stage.cuts import balanced_cuts, stage_shares

CIFAR = (3, 32, 32)


def meta(image: tuple[int, int, int] = CIFAR, classes: int = 10) -> nn.Sequential:
    with torch.device("meta"):
        return build("tssm-resnet", image, classes)


def test_the_layers_of_the_paper() -> None:
    convolutions = [m for m in meta().modules() if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size for m in convolutions] == [(9, 9), *[(3, 3)] * 48]
    assert [m.stride for m in convolutions] == [(3, 3), *[(1, 1)] * 48]
    assert {m.out_channels for m in convolutions} == {64}
    [pooling] = [m for m in meta().modules() if isinstance(m, nn.MaxPool2d)]
    assert (pooling.kernel_size, pooling.stride) == (3, 3)
    assert [m.out_features for m in meta().modules() if isinstance(m, nn.Linear)] == [512, 512, 10]


@pytest.mark.parametrize(
    ("image", "count"),
    # the stem's filters and norm, 24 blocks of two convolutions with norms, 64 -> 512 -> 512 -> 10 with biases
    [(CIFAR, 2_092_362), ((1, 28, 28), 2_092_362 - 2 * 64 * 81)],
)
def test_parameters(image: tuple[int, int, int], count: int) -> None:
    blocks = 24 * 2 * (64 * 64 * 9 + 2 * 64)
    layers = 64 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    assert count == image[0] * 64 * 81 + 2 * 64 + blocks + layers
    assert sum(p.numel() for p in meta(image).parameters()) == count


@pytest.mark.parametrize(
    ("image", "size"),
    [(CIFAR, (4, 4)), ((1, 28, 28), (4, 4)), ((3, 16, 16), (2, 2)), ((1, 14, 14), (2, 2)), ((1, 9, 64), (1, 8))],
)
def test_every_block_keeps_the_size_that_the_stem_leaves(image: tuple[int, int, int], size: tuple[int, int]) -> None:
    assert [each.out_shape for each in trace(meta(image), image)] == [*[(64, *size)] * 25, (512,), (512,), (10,)]


def test_the_stem_and_the_average() -> None:
    torch.manual_seed(0)
    net: Any = build("tssm-resnet", CIFAR, 10).eval()
    images, features = torch.randn(2, *CIFAR), torch.randn(2, 64, 4, 4)
    seen = F.relu(net.stem[1](F.conv2d(images, net.stem[0].weight, stride=3, padding=4)))
    assert seen.shape == (2, 64, 11, 11)
    assert torch.equal(net.stem(images), F.max_pool2d(seen, 3, stride=3, padding=1))
    linear = next(m for m in net.fc1 if isinstance(m, nn.Linear))
    torch.testing.assert_close(net.fc1(features), F.relu(linear(features.mean((2, 3)))))


def test_the_signal_keeps_a_sane_size_in_both_directions() -> None:
    torch.manual_seed(0)
    net: Any = build("tssm-resnet", CIFAR, 10)
    x = net.stem(torch.randn(32, *CIFAR)).detach().requires_grad_()
    features = net[1:25](x)
    assert 0.3 < float((features.std() / x.std()).detach()) < 10
    F.cross_entropy(net[25:](features), torch.arange(32) % 10).backward()
    sizes = [float(net[k].conv2.weight.grad.norm()) for k in range(1, 25)]
    assert max(sizes) / min(sizes) < 30


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_it_can_be_cut_evenly_between_residual_blocks(stages: int) -> None:
    """The paper trains it as two, three and four subnetworks."""
    costs = [block.flops for block in block_costs(meta(), CIFAR)]
    cuts = balanced_cuts(costs, stages)
    assert {list(meta()._modules)[cut].rstrip("0123456789") for cut in cuts} == {"block"}
    assert max(stage_shares(costs, cuts)) < 1.1 / stages


@pytest.mark.parametrize("image", [(1, 8, 9), (1, 9, 8), (3, 4, 4)])
def test_images_smaller_than_the_first_filters_are_refused(image: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"at least 9 x 9 pixels, .* got {image[1]} x {image[2]}; use the mlp"):
        build("tssm-resnet", image, 10)
