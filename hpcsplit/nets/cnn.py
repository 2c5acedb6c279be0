"""The small convolutional network of TSSM, section 3.2.1 (see mlp.py for the paper).

"Two alternating stages of 3 x 3 convolution filters and 2 x 2 max pooling with no stride", 32 filters each, then two
fully connected layers of 512 ReLU neurons. The paper leaves padding, "no stride" and the activation of the
convolutions open. Decided here:
  * "no stride" is stride 1, so pooling takes one row and one column away and does not halve the image (in Keras, which
    the authors use, pooling without a given stride does);
  * pooling is not padded, the convolutions are padded by 1: 32 x 32 becomes 31 x 31 and then 30 x 30;
  * each convolution is followed by ReLU.
Nearly all of the 15 million weights (on 32 x 32) are in fc1 for that reason. Initial weights are torch's default.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from hpcsplit.errors import ConfigError

FILTERS = 32
NEURONS = 512


def cnn(input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The network for samples of shape (C, H, W).

    Blocks, with what each returns for one sample: conv1 (32, H-1, W-1), conv2 (32, H-2, W-2), fc1 (512,), fc2 (512,),
    head (classes,).
    Raises ConfigError for images under 3 x 3 pixels.
    """
    channels, height, width = input_shape
    if min(height, width) < 3:
        raise ConfigError(f"the cnn needs images of at least 3 x 3 pixels, got {height} x {width}; use the mlp")
    flat = FILTERS * (height - 2) * (width - 2)
    return nn.Sequential(
        OrderedDict(
            conv1=_convolve_and_pool(channels),
            conv2=_convolve_and_pool(FILTERS),
            fc1=nn.Sequential(nn.Flatten(), nn.Linear(flat, NEURONS), nn.ReLU(inplace=True)),
            fc2=nn.Sequential(nn.Linear(NEURONS, NEURONS), nn.ReLU(inplace=True)),
            head=nn.Linear(NEURONS, classes),
        )
    )


def _convolve_and_pool(channels_in: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, FILTERS, 3, padding=1)
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.MaxPool2d(2, stride=1))
