"""A network from the user's own code: model.name = "package.module:factory".

The factory returns an nn.Sequential of blocks, or any other nn.Module, which is made into one (chain.py).

# mynets.py, in a folder on PYTHONPATH
def small(input_shape, classes):
    channels, height, width = input_shape
    return nn.Sequential(OrderedDict(
        stem=nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(inplace=True)),
        head=nn.Sequential(nn.Flatten(), nn.Linear(8 * (height - 2) * (width - 2), classes)),
    ))
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hpcsplit.errors import ConfigError
from hpcsplit.host.blame import block_label, line_defined, line_raised, said
from hpcsplit.host.factory import find_factory
from hpcsplit.nets.catalog import is_users
from hpcsplit.nets.chain import chain
from hpcsplit.nets.follow import Unfollowed
from hpcsplit.nets.statedict import check_state
from hpcsplit.nets.weights import begin_with


def custom(
    name: str, input_shape: tuple[int, ...], classes: int, dtype: torch.dtype | None = None, weights: str = ""
) -> nn.Sequential:
    """The result of `factory(input_shape=..., classes=...)` as blocks, as far as it can be checked without computing
    with it (hpcsplit/plan/trial.py does that); samples are of type `dtype`.

    Raises ConfigError where the import or the call fails, and where the result is no nn.Module, has no block, cannot be
    cut into blocks, or has blocks that share a parameter.
    """
    factory = find_factory("model.name", name)
    try:
        net = factory(input_shape=input_shape, classes=classes)
    except Exception as error:
        raise ConfigError(
            f'model.name = "{name}": the call factory(input_shape={input_shape}, classes={classes}) failed '
            f"({said(error)}); correct the factory, {line_raised(error) or line_defined(factory)}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"{whose(name)}it returned {type(net).__name__}; return an nn.Sequential or another nn.Module"
        )
    if wrong := _lazy(net):
        raise ConfigError(f"{whose(name)}{wrong}")
    try:
        blocks = net if type(net).forward is nn.Sequential.forward else chain(net, input_shape, dtype or torch.float32)
    except Unfollowed as error:
        raise ConfigError(
            f"{whose(name)}{error}; write that with operations on tensors alone, put it into a layer of its own, or "
            "return an nn.Sequential of blocks"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{whose(name)}{error}") from error
    assert isinstance(blocks, nn.Sequential)
    if wrong := _broken(blocks):
        raise ConfigError(f"{whose(name)}{wrong}")
    check_state(blocks)
    if weights:
        begin_with(weights, net, blocks, classes)
    return blocks


def whose(name: str) -> str:
    """What begins a sentence about a network: its name, and the line where its factory begins."""
    line = line_defined(find_factory("model.name", name)) if is_users(name) else ""
    return f'model.name = "{name}"{f" ({line})" if line else ""}: '


def _lazy(net: nn.Module) -> str:
    """Which layer does not know its size yet, in words; or ""."""
    for path, part in net.named_modules():
        if any(map(is_lazy, part._parameters.values())):
            return f"{path} ({type(part).__name__}) is a lazy layer; give its size, input_shape is known"
    return ""


def _broken(net: nn.Sequential) -> str:
    """Which promise of a network is broken, in words; or ""."""
    if len(net) == 0:
        return "it returned an nn.Sequential of 0 blocks; it needs at least 1"
    owner: dict[tuple[object, object], int] = {}
    for index, block in enumerate(net):
        for parameter in block.parameters():
            first = owner.setdefault((parameter.untyped_storage()._cdata, parameter.storage_offset()), index)
            if first != index:
                return (
                    f"{block_label(net, first)} and {block_label(net, index)} share a parameter, but may be trained by "
                    "different ranks; join them in one block or give each its own"
                )
    return ""
