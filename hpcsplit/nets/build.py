"""Networks by name."""

from __future__ import annotations

import inspect
import pkgutil
from typing import Any

from torch import nn

from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import lookup


def build(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    block: str = "post",
    depth: int = 9,
    width: int = 512,
) -> nn.Sequential:
    """The network called `name`, for samples of shape (C, H, W), ending in `classes` logits; auto-encoders end in
    images and moments.

    Weights come from torch's global random state: seed it first, and every rank builds the same network.
    `block` ("post" or "pre") is read by resnetN only, `depth` (hidden layers) and `width` (neurons) by mlp only.
    Raises ConfigError for a name that no builder knows, and for a factory that breaks the contract above.
    """
    network = lookup(name)
    if block not in ("post", "pre"):
        raise ConfigError(f'model.block = "{block}" is not "post" or "pre"; take one of them')
    builder = pkgutil.resolve_name(network.builder)
    offered: dict[str, Any] = {"name": name, "input_shape": input_shape, "classes": classes, **network.numbers(name)}
    offered |= {"block": block, "depth": depth, "width": width}
    net: nn.Sequential = builder(**{key: offered[key] for key in inspect.signature(builder).parameters})
    return net
