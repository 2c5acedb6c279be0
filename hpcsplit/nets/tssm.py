"""The networks of TSSM: feed-forward, convolutional, and like a ResNet.

Wang, Chai, Cheng, Zhao: Tunable subnetwork splitting for model-parallelism of neural network training (TSSM), 2020,
sections 3.2.1 and 3.2.2.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from hpcsplit.errors import ConfigError
from hpcsplit.nets.resnet import PostBlock, he_init

NEURONS = 512


def mlp(input_shape: tuple[int, ...], classes: int, depth: int, width: int) -> nn.Sequential:
    """Section 3.2.1: hidden layers of ReLU neurons; there nine of 512 neurons, on images of 14 x 14.

    `depth` layers of `width` neurons for samples of any shape, which the first block flattens.  Blocks: hidden1 ...
    hidden`depth`, each returning (width,) for each sample, then head.

    The paper leaves the initial weights open. Here the hidden layers start from N(0, 2 / fan_in) with zero bias (He et
    al. 2015), which keeps the size of the activations through all layers. With torch's default they shrink by about
    sqrt(6) a layer until little but the biases is left, and a penalty coefficient would mean something else at every
    cut.
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


def cnn(input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Section 3.2.1: "Two alternating stages of 3 x 3 convolution filters and 2 x 2 max pooling with no stride", 32
    filters each, then two fully connected layers of 512 ReLU neurons.

    Blocks, with what each returns for one sample (C, H, W): conv1 (32, H-1, W-1), conv2 (32, H-2, W-2), fc1 (512,),
    fc2 (512,), head (classes,).

    The paper leaves padding, "no stride" and the activation of the convolutions open. Decided here:
      * "no stride" is stride 1, so pooling takes one row and one column away and does not halve the image (in Keras,
        which the authors use, pooling without a given stride does);
      * pooling is not padded, the convolutions are padded by 1: 32 x 32 becomes 31 x 31 and then 30 x 30;
      * each convolution is followed by ReLU.
    Nearly all of the 15 million weights (on 32 x 32) are in fc1 for that reason. Initial weights are torch's default.

    Raises ConfigError for images under 3 x 3 pixels.
    """
    channels, height, width = input_shape
    if min(height, width) < 3:
        raise ConfigError(f"the cnn needs images of at least 3 x 3 pixels, got {height} x {width}; use the mlp")
    filters, blocks = 32, OrderedDict[str, nn.Module]()
    for name, before in (("conv1", channels), ("conv2", filters)):
        convolution = nn.Conv2d(before, filters, 3, padding=1)
        blocks[name] = nn.Sequential(convolution, nn.ReLU(inplace=True), nn.MaxPool2d(2, stride=1))
    return nn.Sequential(blocks | _connected([nn.Flatten()], filters * (height - 2) * (width - 2), classes))


def tssm_resnet(input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Section 3.2.2: "9 x 9 convolution filters with stride of 3 and 3 x 3 max pooling with stride of 3 that are
    followed by 24 ResNet blocks, an average pooling and two fully connected layers of 512" ReLU neurons, each block
    "composed of two stages of 3 x 3 convolution filters".

    Blocks, with what each returns for one sample (C, H, W): stem and block1 ... block24 (64, ceil(H / 9), ceil(W / 9)),
    fc1 (512,), which takes the average first, fc2 (512,), head (classes,).

    The paper leaves the rest open. Decided here:
      * 64 filters in every convolution, after the "50000 x 64 x 7 x 7" of section 2, which is said of a ResNet in
        general. Its 7 x 7 cannot be a boundary of this network on 32 x 32, which two strides of 3 divide by 9: 28 x 28
        is 7 x 7 behind an unpadded 9 x 9 convolution, before the pooling;
      * every window is padded by half its width, so a stride of 3 divides the size by 3, rounding up: 32 x 32 becomes
        11 x 11 and then 4 x 4, 28 x 28 becomes 10 x 10 and then 4 x 4. All blocks keep that size;
      * the blocks are those of He et al. 2016a (resnet.py): BatchNorm behind each convolution, ReLU after the sum.
        Without BatchNorm 24 of them would double the variance 24 times. BatchNorm and ReLU stand behind the 9 x 9
        convolution too;
      * the average is over the whole image and leaves 64 numbers. Initial weights are as in resnet.py.

    Raises ConfigError for images under 9 x 9 pixels.
    """
    filters, window = 64, 9
    channels, height, width = input_shape
    if min(height, width) < window:
        raise ConfigError(
            f"tssm-resnet needs images of at least {window} x {window} pixels, the size of its first filters, "
            f"got {height} x {width}; use the mlp"
        )
    convolution = nn.Conv2d(channels, filters, window, stride=3, padding=window // 2, bias=False)
    pooling = nn.MaxPool2d(3, stride=3, padding=1)
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    blocks["stem"] = nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True), pooling)
    for index in range(1, 25):
        blocks[f"block{index}"] = PostBlock(filters, filters, 1)
    net = nn.Sequential(blocks | _connected([nn.AdaptiveAvgPool2d(1), nn.Flatten()], filters, classes))
    he_init(net)
    return net


def _connected(before: list[nn.Module], values: int, classes: int) -> OrderedDict[str, nn.Module]:
    """Two fully connected layers, the first one behind `before`, which leaves so many values, and the head."""
    return OrderedDict(
        fc1=nn.Sequential(*before, nn.Linear(values, NEURONS), nn.ReLU(inplace=True)),
        fc2=nn.Sequential(nn.Linear(NEURONS, NEURONS), nn.ReLU(inplace=True)),
        head=nn.Linear(NEURONS, classes),
    )
