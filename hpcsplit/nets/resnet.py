"""Residual networks for small images, resnetN with N = 6n+2 layers.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016, section 4.2 ("post", He 2016a);
the same authors: Identity mappings in deep residual networks, ECCV 2016 ("pre", He 2016b).

Three groups of n blocks with 16, 32 and 64 channels; the first block of groups 2 and 3 halves height and width
(rounding up). All shortcuts are free of parameters ("option A"), in both kinds: where the shape changes, every second
pixel is taken and the new channels are zero. A pre-activation shortcut carries the block's raw input.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.nets.layers import activated_head, conv3x3, he_init, pooled_head

GROUP_CHANNELS = (16, 32, 64)


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


class PreBlock(nn.Module):
    """shortcut(x) + conv(ReLU(BN(conv(ReLU(BN(x)))))): the sum stays as it is, the next block activates it."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.shortcut = Shortcut(channels - channels_in, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(torch.relu_(self.bn1(x)))
        both: Tensor = self.conv2(torch.relu_(self.bn2(out))) + self.shortcut(x)
        return both


def resnet(layers: int, input_shape: tuple[int, ...], classes: int, block: str) -> nn.Sequential:
    """resnet`layers` for images (C, H, W) of any size; `block` is "post" or "pre".

    Blocks: stem, group1_block1 ... group3_blockn, head. On 32 x 32 the groups return (16, 32, 32), (32, 16, 16) and
    (64, 8, 8) for each sample.
    """
    n, rest = divmod(layers - 2, 6)
    assert n >= 1, layers
    assert rest == 0, layers
    pre = block == "pre"
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    stem = conv3x3(input_shape[0], GROUP_CHANNELS[0])
    blocks["stem"] = stem if pre else nn.Sequential(stem, nn.BatchNorm2d(GROUP_CHANNELS[0]), nn.ReLU(inplace=True))
    before = GROUP_CHANNELS[0]
    for group, channels in enumerate(GROUP_CHANNELS, start=1):
        for index in range(1, n + 1):
            stride = 2 if group > 1 and index == 1 else 1
            blocks[f"group{group}_block{index}"] = (PreBlock if pre else PostBlock)(before, channels, stride)
            before = channels
    blocks["head"] = (activated_head if pre else pooled_head)(before, classes)
    net = nn.Sequential(blocks)
    he_init(net)
    return net
