"""The ResNet-like network of TSSM, section 3.2.2 (see mlp.py for the paper).

"9 x 9 convolution filters with stride of 3 and 3 x 3 max pooling with stride of 3 that are followed by 24 ResNet
blocks, an average pooling and two fully connected layers of 512" ReLU neurons, each block "composed of two stages of
3 x 3 convolution filters". The paper leaves the rest open. Decided here:
  * 64 filters in every convolution, after the "50000 x 64 x 7 x 7" of section 2, which is said of a ResNet in general.
    Its 7 x 7 cannot be a boundary of this network on 32 x 32, which two strides of 3 divide by 9: 28 x 28 is 7 x 7
    behind an unpadded 9 x 9 convolution, before the pooling;
  * every window is padded by half its width, so a stride of 3 divides the size by 3, rounding up: 32 x 32 becomes
    11 x 11 and then 4 x 4, 28 x 28 becomes 10 x 10 and then 4 x 4. All blocks keep that size;
  * the blocks are those of He et al. 2016a (resnet.py): BatchNorm behind each convolution, ReLU after the sum. Without
    BatchNorm 24 of them would double the variance 24 times. BatchNorm and ReLU stand behind the 9 x 9 convolution too;
  * the average is over the whole image and leaves 64 numbers. Initial weights are as in resnet.py.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from hpcsplit.errors import ConfigError
from hpcsplit.nets.layers import he_init
from hpcsplit.nets.resnet import PostBlock

FILTERS = 64
BLOCKS = 24
NEURONS = 512
WINDOW = 9


def tssm_resnet(input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The network for samples of shape (C, H, W).

    Blocks, with what each returns for one sample: stem and block1 ... block24 (64, ceil(H / 9), ceil(W / 9)),
    fc1 (512,), which takes the average first, fc2 (512,), head (classes,).
    Raises ConfigError for images under 9 x 9 pixels.
    """
    channels, height, width = input_shape
    if min(height, width) < WINDOW:
        raise ConfigError(
            f"tssm-resnet needs images of at least {WINDOW} x {WINDOW} pixels, the size of its first filters, "
            f"got {height} x {width}; use the mlp"
        )
    blocks: OrderedDict[str, nn.Module] = OrderedDict(stem=_stem(channels))
    for index in range(1, BLOCKS + 1):
        blocks[f"block{index}"] = PostBlock(FILTERS, FILTERS, 1)
    average = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    blocks["fc1"] = nn.Sequential(*average, nn.Linear(FILTERS, NEURONS), nn.ReLU(inplace=True))
    blocks["fc2"] = nn.Sequential(nn.Linear(NEURONS, NEURONS), nn.ReLU(inplace=True))
    blocks["head"] = nn.Linear(NEURONS, classes)
    net = nn.Sequential(blocks)
    he_init(net)
    return net


def _stem(channels_in: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, FILTERS, WINDOW, stride=3, padding=WINDOW // 2, bias=False),
        nn.BatchNorm2d(FILTERS),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=3, padding=1),
    )
