"""The formulas of the residual blocks, against the papers, and the size of the initial activations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build
from hpcsplit.nets.resnet import PostBlock, PreBlock, Shortcut, WideBlock


def silence(block: PostBlock | PreBlock | WideBlock) -> None:
    """Make the residual branch zero, so that only the shortcut is left."""
    nn.init.zeros_(block.conv2.weight)


def test_the_shortcut_takes_every_second_pixel_and_adds_zero_channels() -> None:
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5)
    y = Shortcut(4, 2)(x)
    assert y.shape == (2, 7, 3, 3)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()


def test_post_activation_rectifies_the_sum() -> None:
    block = PostBlock(4, 4, 1)
    silence(block)
    x = torch.randn(3, 4, 6, 6)
    assert torch.equal(block(x), F.relu(x))


def test_pre_activation_keeps_the_raw_input() -> None:
    block = PreBlock(4, 4, 1)
    silence(block)
    x = torch.randn(3, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_a_wide_shortcut_projects_the_activated_input() -> None:
    block = WideBlock(4, 6, 2).eval()
    silence(block)
    assert block.project is not None
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(block(x), F.conv2d(F.relu(block.bn1(x)), block.project.weight, stride=2))


def test_a_wide_block_without_change_of_shape_has_no_projection() -> None:
    block = WideBlock(4, 4, 1)
    silence(block)
    assert block.project is None
    x = torch.randn(3, 4, 6, 6)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("kind", [PostBlock, PreBlock, WideBlock])
def test_the_branch_is_not_dead(kind: type[PostBlock | PreBlock | WideBlock]) -> None:
    block = kind(4, 4, 1)
    x = torch.randn(3, 4, 6, 6)
    branch = block(x)
    silence(block)
    assert (branch - block(x)).abs().max() > 0.1


def test_convolutions_start_as_he_says() -> None:
    torch.manual_seed(0)
    for name in ("resnet20", "wrn-16-2", "tssm-resnet"):
        for layer in build(name, (3, 32, 32), 10).modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 4000:
                fan_out = layer.out_channels * math.prod(layer.kernel_size)
                assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)


def test_pre_activation_has_no_norm_in_the_stem_and_one_in_the_head() -> None:
    pre, post = (build("resnet8", (3, 8, 8), 10, block=block) for block in ("pre", "post"))

    def count(block: str, net: nn.Sequential) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in net.get_submodule(block).modules())

    assert (count("stem", pre), count("head", pre)) == (0, 1)
    assert (count("stem", post), count("head", post)) == (1, 0)


def test_activations_keep_their_size_through_the_mlp() -> None:
    torch.manual_seed(0)
    net = build("mlp", (1, 14, 14), 10)
    x = torch.randn(50, 1, 14, 14)
    assert 0.3 < net[:-1](x).pow(2).mean().item() < 3  # torch's default: under 0.01


def test_the_cnn_pools_with_stride_one() -> None:
    net: Any = build("cnn", (3, 32, 32), 10)
    x = torch.randn(1, 3, 32, 32)
    convolution = net.conv1[0]
    assert torch.equal(net.conv1(x), F.max_pool2d(F.relu(convolution(x)), 2, stride=1))
    assert net.fc1[1].in_features == 32 * 30 * 30


def test_the_cnn_refuses_images_that_pooling_would_use_up() -> None:
    with pytest.raises(ConfigError, match="at least 3 x 3 pixels, got 2 x 9"):
        build("cnn", (1, 2, 9), 10)
