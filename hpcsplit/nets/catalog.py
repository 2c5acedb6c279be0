"""The one list of networks: a new one is an entry here, and a file with its builder, which alone is heavy to import."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpcsplit.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """What is known of a kind of networks without importing it.

    The function `builder`, "module:function", gives the network from those that it takes of the numbers of its name,
    name, input_shape (C, H, W), classes, and of section [model] block, depth and width.
    """

    words: str  # its name, as help has it
    pattern: str  # of its name; the groups are whole numbers
    builder: str
    rule: Callable[..., str] = lambda **numbers: ""  # what they must be, in words, where they make no such network
    task: str = "classification"  # what it is made for; "" for any

    def numbers(self, name: str) -> dict[str, int]:
        """Those in a name of this kind."""
        match = re.fullmatch(self.pattern, name)
        return {key: int(value) for key, value in match.groupdict().items()} if match else {}


def _residual(layers: int) -> str:
    if layers >= 8 and (layers - 2) % 6 == 0:
        return ""
    below = max(8, layers - (layers - 2) % 6)
    return f"a residual network has 6n+2 layers; the nearest are resnet{below} and resnet{below + 6}"


def _wide(layers: int, factor: int) -> str:
    good = layers >= 10 and (layers - 4) % 6 == 0 and factor >= 1
    return "" if good else "wrn-D-W needs D = 6n+4 (10, 16, 22, 28, 34, 40 ...) and W >= 1"


NETWORKS = (
    Network("resnetN (N = 6n+2 < 10,000)", r"resnet(?P<layers>\d{1,4})", "hpcsplit.nets.resnet:resnet", _residual),
    Network(
        "resnetN-vae", r"resnet(?P<layers>\d{1,4})-vae", "hpcsplit.nets.resnet_vae:resnet_vae", _residual, "generation"
    ),
    Network(
        "wrn-D-W (D = 6n+4 < 1,000, W < 100)",
        r"wrn-(?P<layers>\d{1,3})-(?P<factor>\d{1,2})",
        "hpcsplit.nets.resnet:wide_resnet",
        _wide,
    ),
    Network("mlp", "mlp", "hpcsplit.nets.tssm:mlp"),
    Network("cnn", "cnn", "hpcsplit.nets.tssm:cnn"),
    Network("tssm-resnet", "tssm-resnet", "hpcsplit.nets.tssm:tssm_resnet"),
    Network("package.module:factory", r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", "hpcsplit.nets.custom:custom", task=""),
)


def lookup(name: str) -> Network:
    """The kind that a network of this name is of; ConfigError where there is none, or none with these numbers."""
    for network in NETWORKS:
        if re.fullmatch(network.pattern, name):
            if wrong := network.rule(**network.numbers(name)):
                raise ConfigError(f'model.name = "{name}": {wrong}')
            return network
    raise ConfigError(f'model.name = "{name}" is not one of {", ".join(network.words for network in NETWORKS)}')


def build(
    name: str, input_shape: tuple[int, int, int], classes: int, *, block: str = "post", depth: int = 9, width: int = 512
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
