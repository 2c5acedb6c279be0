"""A variational auto-encoder whose encoder is a residual network: DS-SPH, section 4.2 (ResNet-VAE).

The paper gives the encoder, ResNet-110; latent size and decoder are ours.  The output is (B, n + 2 Z), see
tasks/generation.py.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from hpcsplit.nets.resnet import GROUP_CHANNELS, conv3x3, he_init, resnet

LATENT = 32
LARGEST = 10.0  # |ln σ²|: beyond that exp overflows before training can turn back


class Latent(nn.Module):
    """(B, 64, H, W) -> (B, 3 Z): z ~ N(μ, σ²), μ and ln σ²; in evaluation z = μ."""

    draws = True

    def __init__(self, values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(values, 2 * LATENT)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.linear(x.flatten(1)).chunk(2, dim=1)
        log_variance = log_variance.clamp(-LARGEST, LARGEST)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return torch.cat([z, mean, log_variance], dim=1)


class Decoder(nn.Module):
    """(B, 3 Z) -> (B, C·H·W + 2 Z): the image that z stands for, and the moments as they are."""

    def __init__(self, image: tuple[int, int, int], before: tuple[int, int]) -> None:
        super().__init__()
        wide, middle, narrow = GROUP_CHANNELS[::-1]
        self.begin = nn.Sequential(nn.Linear(LATENT, wide * before[0] * before[1]), nn.ReLU())
        self.grow = nn.Sequential(
            nn.Unflatten(1, (wide, *before)),
            *_doubled(wide, middle),
            *_doubled(middle, narrow),
            nn.Upsample(image[1:]),
            conv3x3(narrow, image[0]),
        )

    def forward(self, x: Tensor) -> Tensor:
        z, moments = x.split([LATENT, 2 * LATENT], dim=1)
        return torch.cat([self.grow(self.begin(z)).flatten(1), moments], dim=1)


def resnet_vae(layers: int, input_shape: tuple[int, int, int], block: str) -> nn.Sequential:
    """resnet`layers` without its head as encoder of images (C, H, W), then the blocks "latent" and "decoder"."""
    whole = resnet(layers, input_shape, 1, block)
    blocks: OrderedDict[str, nn.Module] = OrderedDict(list(whole.named_children())[:-1])
    height, width = (math.ceil(math.ceil(size / 2) / 2) for size in input_shape[1:])
    active = [nn.BatchNorm2d(GROUP_CHANNELS[-1]), nn.ReLU(inplace=True)] if block == "pre" else []
    blocks["latent"] = nn.Sequential(*active, Latent(GROUP_CHANNELS[-1] * height * width))
    blocks["decoder"] = Decoder(input_shape, (height, width))
    he_init(blocks["decoder"])
    return nn.Sequential(blocks)


def _doubled(channels_in: int, channels: int) -> list[nn.Module]:
    """Twice the height and width."""
    grown = (nn.Upsample(scale_factor=2), conv3x3(channels_in, channels))
    return [*grown, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
