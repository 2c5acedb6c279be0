"""The networks of torchvision and timm for the classification of images, made into blocks (chain.py).

Each is the package's own module with as many outputs as there are classes and random weights, or those of a file
(weights.py); blocks and parameters are named as chain.py says.  A network for images takes them with other than three
channels, too.  One that has a size of images built in gets that of the data, where the package lets it be set.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from torch import nn
from torchvision import models

from hpcsplit.errors import ConfigError
from hpcsplit.host.blame import said
from hpcsplit.nets.chain import chain
from hpcsplit.nets.weights import begin_with


def from_torchvision(name: str, input_shape: tuple[int, ...], classes: int, weights: str) -> nn.Sequential:
    """torchvision.models, by name.

    With C channels in place of 3 the first convolution has its random weights of channel c mod 3 for channel c.
    Raises ConfigError for an unknown name, for samples that it does not take, and where it cannot be cut.
    """
    own, options = name.partition(":")[2], dict[str, Any]()
    _check_name(name, own, models.list_models(module=models), "torchvision")
    channels, height, _ = _image(name, input_shape)
    if own.startswith("vit_"):
        options["image_size"] = height
    try:
        net = models.get_model(own, weights=None, num_classes=classes, **options)
    except Exception as error:
        raise _refused(name, input_shape, error) from error
    if channels != 3:
        first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
        first.in_channels = channels
        first.weight = nn.Parameter(first.weight.detach()[:, [channel % 3 for channel in range(channels)]])
    return _blocks(name, net, input_shape, classes, weights)


def from_timm(name: str, input_shape: tuple[int, ...], classes: int, weights: str) -> nn.Sequential:
    """timm (PyTorch Image Models), by name, where it is installed; nothing is downloaded.

    Raises ConfigError where it is not installed, for an unknown name, for samples that the network does not take, and
    where it cannot be cut.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f'model.name = "{name}": timm cannot be imported ({said(error)}); pip install timm'
        ) from error
    own = name.partition(":")[2]
    if not timm.is_model(own):
        _check_name(name, own, timm.list_models(), "timm")
    channels, *size = _image(name, input_shape)
    options: dict[str, Any] = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    try:
        try:
            net = timm.create_model(own, img_size=tuple(size), **options)
        except TypeError:  # it is for any size
            net = timm.create_model(own, **options)
    except Exception as error:
        raise _refused(name, input_shape, error) from error
    return _blocks(name, net, input_shape, classes, weights)


def _check_name(name: str, own: str, known: Collection[str], package: str) -> None:
    if own not in known:
        near = difflib.get_close_matches(own, known, n=3)
        which = f"did you mean {', '.join(f'{package}:{each}' for each in near)}?" if near else f"see {package}'s list"
        raise ConfigError(f'model.name = "{name}": {package} has no network for classification of that name; {which}')


def _image(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 3:
        raise ConfigError(f'model.name = "{name}" takes images, not samples of shape {shape}; take another network')
    return shape


def _refused(name: str, shape: tuple[int, ...], error: Exception) -> ConfigError:
    return ConfigError(
        f'model.name = "{name}" is not made for images of shape {shape} ({said(error)}); take another size or network'
    )


def _blocks(name: str, net: nn.Module, input_shape: tuple[int, ...], classes: int, weights: str) -> nn.Sequential:
    try:
        blocks = chain(net, input_shape)
    except ConfigError as error:
        raise ConfigError(f'model.name = "{name}": {error}; take another network, or another size of images') from error
    if weights:
        begin_with(weights, net, blocks, classes)
    return blocks
