"""The feed-forward network: hidden layers of ReLU neurons.

Wang, Chai, Cheng, Zhao: Tunable subnetwork splitting for model-parallelism of neural network training (TSSM), 2020,
section 3.2.1: nine hidden layers of 512 neurons, on images of 14 x 14.

The paper leaves the initial weights open. Here the hidden layers start from N(0, 2 / fan_in) with zero bias (He et al.
2015), which keeps the size of the activations through all layers. With torch's default they shrink by about sqrt(6) a
layer until little but the biases is left, and a penalty coefficient would mean something else at every cut.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn


def mlp(input_shape: tuple[int, ...], classes: int, depth: int, width: int) -> nn.Sequential:
    """`depth` hidden layers of `width` neurons for samples of any shape, which the first block flattens.

    Blocks: hidden1 ... hidden`depth`, each returning (width,) for each sample, then head.
    """
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    before = math.prod(input_shape)
    for index in range(1, depth + 1):
        linear = nn.Linear(before, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        flatten = [nn.Flatten()] if index == 1 else []
        blocks[f"hidden{index}"] = nn.Sequential(*flatten, linear, nn.ReLU(inplace=True))
        before = width
    blocks["head"] = nn.Linear(before, classes)
    return nn.Sequential(blocks)
