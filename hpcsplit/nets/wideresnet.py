"""Wide residual networks, wrn-D-W with D = 6n+4 layers and widening factor W.

Zagoruyko, Komodakis: Wide residual networks, BMVC 2016. Pre-activation blocks in three groups of n, with 16W, 32W and
64W channels; the first block of groups 2 and 3 halves height and width (rounding up). Where the shape changes, the
shortcut is a 1 x 1 convolution of the activated input, as in the authors' code; elsewhere it is the raw input.
No dropout. D counts the 1 x 1 convolutions of the three projections, hence 6n+4 where He et al. have 6n+2.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from hpcsplit.nets.layers import activated_head, conv3x3, he_init

STEM_CHANNELS = 16


class WideBlock(nn.Module):
    """shortcut + conv(ReLU(BN(conv(a)))) with a = ReLU(BN(x)); the shortcut is x, or project(a)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.project: nn.Conv2d | None = None
        if channels != channels_in or stride != 1:
            self.project = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu_(self.bn1(x))
        shortcut = x if self.project is None else self.project(activated)
        out: Tensor = self.conv2(torch.relu_(self.bn2(self.conv1(activated))))
        return out + shortcut


def wide_resnet(layers: int, factor: int, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """wrn-`layers`-`factor` for images (C, H, W) of any size.

    Blocks: stem, group1_block1 ... group3_blockn, head. On 32 x 32 the groups return (16W, 32, 32), (32W, 16, 16) and
    (64W, 8, 8) for each sample.
    """
    n, rest = divmod(layers - 4, 6)
    assert min(n, factor) >= 1, (layers, factor)
    assert rest == 0, layers
    blocks: OrderedDict[str, nn.Module] = OrderedDict(stem=conv3x3(input_shape[0], STEM_CHANNELS))
    before = STEM_CHANNELS
    for group in (1, 2, 3):
        channels = 2 ** (group - 1) * 16 * factor
        for index in range(1, n + 1):
            stride = 2 if group > 1 and index == 1 else 1
            blocks[f"group{group}_block{index}"] = WideBlock(before, channels, stride)
            before = channels
    blocks["head"] = activated_head(before, classes)
    net = nn.Sequential(blocks)
    he_init(net)
    return net
