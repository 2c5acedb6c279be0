"""Transformers: for tokens as GPT-2, for images as the Vision Transformer; small and as in the papers.

Radford, Wu, Child, Luan, Amodei, Sutskever: Language models are unsupervised multitask learners (GPT-2), 2019.
Dosovitskiy et al.: An image is worth 16 x 16 words (ViT), ICLR 2021, section 3.1, equations 1 to 4.

Both are D layers of width W, x + attention(norm(x)), then x + MLP(norm(x)) (Vaswani et al. 2017, norms before), with
max(1, W // 64) heads, or the most below that which divide W, and an MLP of 4 W GELU neurons.  No dropout.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.errors import ConfigError

_STD = 0.02  # of initial weights; GPT-2
_PATCHES, _FEWEST = (16, 8, 4, 2), 16


def gpt(depth: int, width: int, name: str, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """GPT-2: int64 tokens (B, T) below `classes`, the size of the vocabulary, become logits (B, T, classes), at each
    place those of the token that comes next, from the tokens up to there.

    Blocks, with what each returns for a sample: embed and block1 ... block`depth` (T, W), head (T, classes).  The head
    has a matrix of its own, and not that of the embedding: the two may be trained by different ranks.

    Initial weights are N(0, 0.02²), those that end in the sum 0.02 / √(2 D), biases 0.
    Raises ConfigError for samples that are no rows of tokens.
    """
    if len(input_shape) != 1:
        raise ConfigError(
            f'model.name = "{name}" takes rows of tokens, not samples of shape {input_shape}; take a text'
        )
    blocks: OrderedDict[str, nn.Module] = OrderedDict(embed=Tokens(classes, input_shape[0], width))
    return _finished(blocks, depth, width, classes, causal=True)


def vit(depth: int, width: int, patch: int, name: str, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """ViT without a class token: the head takes the mean over all patches (appendix D.3), so that all boundaries are
    alike.

    A patch has `patch` x `patch` pixels; 0: the most of 16, 8, 4 and 2 that divide both sides and leave 16 patches.
    Blocks, with what each returns for a sample of N patches: embed and block1 ... block`depth` (N, W), head (classes,).
    Initial weights as in `gpt`.  Raises ConfigError for images that cannot be cut into such patches.
    """
    if len(input_shape) != 3:
        raise ConfigError(
            f'model.name = "{name}" takes images, not samples of shape {input_shape}; take another network'
        )
    channels, height, width_of_image = input_shape
    sizes = [
        size
        for size in ([patch] if patch else _PATCHES)
        if height % size == width_of_image % size == 0 and (patch or height * width_of_image >= _FEWEST * size * size)
    ]
    if not sizes:
        what = f"patches of {patch} x {patch}" if patch else f"{_FEWEST} patches or more of 16, 8, 4 or 2 pixels a side"
        raise ConfigError(
            f'model.name = "{name}": images of {height} x {width_of_image} pixels cannot be cut into {what}; take '
            "vit-D-W-P with a P that divides both sides"
        )
    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        embed=Patches(channels, height * width_of_image // sizes[0] ** 2, sizes[0], width)
    )
    return _finished(blocks, depth, width, classes, causal=False)


def heads_of(width: int) -> int:
    """Heads of a layer: of 64 numbers each, or of the next number more that divides the width."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


class Tokens(nn.Module):
    """Embeddings of tokens and of their places, (B, T) to (B, T, W)."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.empty(length, width))

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.token(ids)
        return x + self.place[: ids.shape[1]]


class Patches(nn.Module):
    """Embeddings of patches and of their places, (B, C, H, W) to (B, N, W)."""

    def __init__(self, channels: int, count: int, size: int, width: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, width, size, stride=size)
        self.place = nn.Parameter(torch.empty(count, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.patch(x)
        return y.flatten(2).transpose(1, 2).contiguous() + self.place


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, W) to the same; `causal`: of each place to itself and those before."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        mixed: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return mixed


class Layer(nn.Module):
    """Attention and MLP, each with a norm before and a sum behind."""

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads_of(width), causal=causal)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(hidden=nn.Linear(width, 4 * width), gelu=nn.GELU(), output=nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = self.mlp(self.norm2(x))
        return x + y


class Mean(nn.Module):
    """Over all places, (B, N, W) to (B, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _finished(
    blocks: OrderedDict[str, nn.Module], depth: int, width: int, classes: int, *, causal: bool
) -> nn.Sequential:
    """With the layers, the head and initial weights."""
    for number in range(1, depth + 1):
        blocks[f"block{number}"] = Layer(width, causal=causal)
    head: OrderedDict[str, nn.Module] = OrderedDict(norm=nn.LayerNorm(width))
    if not causal:
        head["mean"] = Mean()
    head["logits"] = nn.Linear(width, classes, bias=not causal)
    net = nn.Sequential(blocks | {"head": nn.Sequential(head)})
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif ".norm" not in name:
            into_the_sum = name.endswith("output.weight")
            nn.init.normal_(parameter, std=_STD / math.sqrt(2 * depth) if into_the_sum else _STD)
    return net
