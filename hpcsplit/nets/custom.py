"""A network from the user's own code: model.name = "package.module:factory".

# mynets.py, in a folder on PYTHONPATH
def small(input_shape, classes):
    channels, height, width = input_shape
    return nn.Sequential(OrderedDict(
        stem=nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(inplace=True)),
        head=nn.Sequential(nn.Flatten(), nn.Linear(8 * (height - 2) * (width - 2), classes)),
    ))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn
from torch.nn.parameter import is_lazy

from hpcsplit.errors import ConfigError
from hpcsplit.nets.shapes import block_names, trace
from hpcsplit.nets.statedict import check_state


def custom(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The result of `factory(input_shape=..., classes=...)`, checked against the contract of a network.

    Raises ConfigError where the import or the call fails, and where the result is no nn.Sequential of at least one
    block, runs anything but its blocks in order, shares a parameter between blocks, or has a block that changes its
    input in place.
    """
    factory = _find(name)
    try:
        net = factory(input_shape=input_shape, classes=classes)
    except Exception as error:
        raise ConfigError(
            f'model.name = "{name}": the call factory(input_shape={input_shape}, classes={classes}) failed '
            f"({type(error).__name__}: {error}); correct the factory"
        ) from error
    if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward:
        raise ConfigError(
            f'model.name = "{name}" returned {type(net).__name__}; return a plain nn.Sequential of blocks, because the '
            "network is cut between them"
        )
    if len(net) == 0:
        raise ConfigError(f'model.name = "{name}" returned an nn.Sequential of 0 blocks; it needs at least 1')
    _check_parameters(name, net)
    check_state(net)
    _check_inputs_stay(name, net, input_shape)
    return net


def _find(name: str) -> Callable[..., object]:
    module_name, factory_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code runs here
        raise ConfigError(
            f'model.name = "{name}": importing {module_name} failed ({type(error).__name__}: {error}); '
            "is its folder on PYTHONPATH?"
        ) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise ConfigError(f'model.name = "{name}": {module_name} has no function {factory_name}; define it there')
    return factory


def _check_parameters(name: str, net: nn.Sequential) -> None:
    owner: dict[int, str] = {}
    for block_name, block in zip(block_names(net), net, strict=True):
        for parameter in block.parameters():
            if is_lazy(parameter):
                raise ConfigError(
                    f'model.name = "{name}": block {block_name} has a lazy layer; give its size, input_shape is known'
                )
            first = owner.setdefault(id(parameter), block_name)
            if first != block_name:
                raise ConfigError(
                    f'model.name = "{name}": blocks {first} and {block_name} share a parameter, but may be trained by '
                    "different ranks; join them in one block or give each its own"
                )


def _check_inputs_stay(name: str, net: nn.Sequential, input_shape: tuple[int, int, int]) -> None:
    """A tensor counts its changes in `_version`, also on the meta device and through views."""
    changes = 0
    for block_name, (x, y) in zip(block_names(net), trace(net, input_shape), strict=True):
        if x._version != changes:
            raise ConfigError(
                f'model.name = "{name}": block {block_name} changes its input in place; use inplace=False in its '
                "first layer, or join it with the block before it"
            )
        changes = y._version
