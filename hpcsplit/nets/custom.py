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
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parameter import is_lazy

from hpcsplit.errors import ConfigError
from hpcsplit.nets.blame import block_label, line_defined, line_raised, said
from hpcsplit.nets.statedict import check_state

_given: dict[str, Callable[..., object]] = {}  # what this process has made itself, by model.name


@contextmanager
def given(name: str, factory: Callable[..., object]) -> Iterator[str]:
    """Within the block model.name = `name` is this function, and nothing is imported for it."""
    before = _given.get(name)
    _given[name] = factory
    try:
        yield name
    finally:
        _given.pop(name)
        if before:
            _given[name] = before


def is_given(name: str) -> bool:
    """Whether a program has said what this model.name is."""
    return name in _given


def custom(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The result of `factory(input_shape=..., classes=...)`, as far as it can be checked without computing with it
    (hpcsplit/plan/trial.py does that).

    Raises ConfigError where the import or the call fails, and where the result is no nn.Sequential of at least one
    block, runs anything but its blocks in order, or has blocks that share a parameter.
    """
    factory = find_factory(name)
    try:
        net = factory(input_shape=input_shape, classes=classes)
    except Exception as error:
        raise ConfigError(
            f'model.name = "{name}": the call factory(input_shape={input_shape}, classes={classes}) failed '
            f"({said(error)}); correct the factory, {line_raised(error) or line_defined(factory)}"
        ) from error
    if wrong := _broken(net):
        raise ConfigError(f"{whose(name)}{wrong}")
    assert isinstance(net, nn.Sequential)
    check_state(net)
    return net


def whose(name: str) -> str:
    """What begins a sentence about a network: its name, and the line where its factory begins."""
    line = line_defined(find_factory(name)) if ":" in name else ""
    return f'model.name = "{name}"{f" ({line})" if line else ""}: '


def find_factory(name: str) -> Callable[..., object]:
    """The function that model.name = "package.module:factory" names, or that a program has `given`.  ConfigError where
    there is none."""
    if name in _given:
        return _given[name]
    module_name, factory_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code runs here
        line = line_raised(error)
        raise ConfigError(
            f'model.name = "{name}": importing {module_name} failed ({said(error)}{f", {line}" if line else ""}); '
            "is its folder on PYTHONPATH?"
        ) from error
    factory: Callable[..., object] | None = getattr(module, factory_name, None)
    if not callable(factory):
        raise ConfigError(f'model.name = "{name}": {module_name} has no function {factory_name}; define it there')
    return factory


def _broken(net: object) -> str:
    """Which promise of a network is broken, in words; or ""."""
    if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward:
        return (
            f"it returned {type(net).__name__}; return a plain nn.Sequential of blocks, because the network is cut "
            "between them"
        )
    if len(net) == 0:
        return "it returned an nn.Sequential of 0 blocks; it needs at least 1"
    owner: dict[tuple[object, object], int] = {}
    for index, block in enumerate(net):
        for parameter in block.parameters():
            if is_lazy(parameter):
                return f"{block_label(net, index)} has a lazy layer; give its size, input_shape is known"
            first = owner.setdefault((parameter.untyped_storage()._cdata, parameter.storage_offset()), index)
            if first != index:
                return (
                    f"{block_label(net, first)} and {block_label(net, index)} share a parameter, but may be trained by "
                    "different ranks; join them in one block or give each its own"
                )
    return ""
