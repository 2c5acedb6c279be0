"""What the two residual families share: the 3 x 3 convolution, the two kinds of head, the initial weights."""

from __future__ import annotations

from torch import nn


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """(B, channels_in, H, W) -> (B, channels_out, ceil(H / stride), ceil(W / stride)); no bias, BatchNorm has one."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def pooled_head(channels: int, classes: int) -> nn.Sequential:
    """(B, channels, H, W) -> (B, classes): global average, then one linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def activated_head(channels: int, classes: int) -> nn.Sequential:
    """The head behind pre-activation blocks, which leave the last BatchNorm and ReLU to it."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *pooled_head(channels, classes))


def he_init(net: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan_out) (He et al. 2015); other layers keep torch's default."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
