"""Residual networks for small images: resnetN with N = 6n+2 layers, and wide ones, wrn-D-W with D = 6n+4 layers.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016, section 4.2 ("post", He 2016a);
the same authors: Identity mappings in deep residual networks, ECCV 2016 ("pre", He 2016b);
Zagoruyko, Komodakis: Wide residual networks, BMVC 2016.

Three groups of n blocks with 16, 32 and 64 channels, in wide ones W times as many; the first block of groups 2 and 3
halves height and width (rounding up). Where the shape changes, the shortcuts of resnetN are free of parameters
("option A"), in both kinds: every second pixel is taken and the new channels are zero. Those of wide networks are a
1 x 1 convolution of the activated input, as in the authors' code; the three of them count, hence 6n+4 layers. Elsewhere
the shortcut of a pre-activation or wide block carries its raw input. No dropout.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP_CHANNELS = (16, 32, 64)


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """(B, channels_in, H, W) -> (B, channels_out, ceil(H / stride), ceil(W / stride)); no bias, BatchNorm has one."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def he_init(net: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out) (He et al. 2015); other layers keep torch's default."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Shortcut(nn.Module):
    """(B, C, H, W) -> (B, C + new_channels, ceil(H / stride), ceil(W / stride)), without parameters."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x

    def extra_repr(self) -> str:
        return f"new_channels={self.new_channels}, stride={self.stride}"


class PostBlock(nn.Module):
    """ReLU(shortcut(x) + BN(conv(ReLU(BN(conv(x)))))): the activation comes after the sum."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = Shortcut(channels - channels_in, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu_(out + self.shortcut(x))


class _PreActivation(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)


class PreBlock(_PreActivation):
    """shortcut(x) + conv(ReLU(BN(conv(ReLU(BN(x)))))): the sum stays as it is, the next block activates it."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        self.shortcut = Shortcut(channels - channels_in, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(torch.relu_(self.bn1(x)))
        both: Tensor = self.conv2(torch.relu_(self.bn2(out))) + self.shortcut(x)
        return both


class WideBlock(_PreActivation):
    """shortcut + conv(ReLU(BN(conv(a)))) with a = ReLU(BN(x)); the shortcut is x, or project(a)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        same = channels == channels_in and stride == 1
        self.project = None if same else nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu_(self.bn1(x))
        shortcut = x if self.project is None else self.project(activated)
        out: Tensor = self.conv2(torch.relu_(self.bn2(self.conv1(activated))))
        return out + shortcut


def resnet(layers: int, input_shape: tuple[int, ...], classes: int, block: str) -> nn.Sequential:
    """resnet`layers` for images (C, H, W) of any size; `block` is "post" or "pre".

    Blocks: stem, group1_block1 ... group3_blockn, head. On 32 x 32 the groups return (16, 32, 32), (32, 16, 16) and
    (64, 8, 8) for each sample.
    """
    stem = conv3x3(input_shape[0], GROUP_CHANNELS[0])
    if block == "pre":
        return _grouped(stem, PreBlock, layers - 2, 1, classes)
    activated = nn.Sequential(stem, nn.BatchNorm2d(GROUP_CHANNELS[0]), nn.ReLU(inplace=True))
    return _grouped(activated, PostBlock, layers - 2, 1, classes)


def wide_resnet(layers: int, factor: int, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """wrn-`layers`-`factor`, blocks as of `resnet`; the groups return `factor` times as many channels."""
    return _grouped(conv3x3(input_shape[0], GROUP_CHANNELS[0]), WideBlock, layers - 4, factor, classes)


def _grouped(
    stem: nn.Module, block: Callable[[int, int, int], nn.Module], convolutions: int, factor: int, classes: int
) -> nn.Sequential:
    """The stem, three groups of blocks that have so many convolutions of 3 x 3 together, and the head."""
    n, rest = divmod(convolutions, 6)
    assert min(n, factor) >= 1, (convolutions, factor)
    assert rest == 0, convolutions
    blocks, before = OrderedDict(stem=stem), GROUP_CHANNELS[0]
    for group, channels in enumerate(GROUP_CHANNELS, start=1):
        for index in range(1, n + 1):
            stride = 2 if group > 1 and index == 1 else 1
            blocks[f"group{group}_block{index}"] = block(before, factor * channels, stride)
            before = factor * channels
    last = [] if block is PostBlock else [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]  # the blocks leave it to it
    blocks["head"] = nn.Sequential(*last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
    net = nn.Sequential(blocks)
    he_init(net)
    return net
