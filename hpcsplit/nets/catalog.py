"""The one list of networks: a new one is an entry here, and a file with its builder, which alone is heavy to import."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hpcsplit.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Network:
    """What is known of a kind of networks without importing it.

    The function `builder`, "module:function", gives the network from those that it takes of the numbers of its name,
    name, input_shape, dtype and classes, and of section [model] weights, block, depth and width.
    """

    words: str  # its name, as help has it
    pattern: str  # of its name; the groups are whole numbers
    builder: str
    rule: Callable[..., str] = lambda **numbers: ""  # what they must be, in words, where they make no such network
    task: str = "classification"  # what it is made for; "" for any
    whose: Literal["ours", "a package's", "the user's"] = "ours"  # others' are tried out before a run

    def numbers(self, name: str) -> dict[str, int]:
        """Those in a name of this kind."""
        match = re.fullmatch(self.pattern, name)
        return {key: int(value or 0) for key, value in match.groupdict().items()} if match else {}


_IMAGENET = (18, 34, 50, 101, 152)  # layers of what everybody calls resnet18 and so on


def _plain_residual(layers: int) -> str:
    if layers not in _IMAGENET:
        return _residual(layers)
    if _residual(layers):
        return f'the network for ImageNet is "torchvision:resnet{layers}"; for small images, {_residual(layers)}'
    return (
        f'write "torchvision:resnet{layers}" for the network for ImageNet, or "cifar-resnet{layers}" for that of so '
        "many layers for small images"
    )


def _residual(layers: int) -> str:
    if layers >= 8 and (layers - 2) % 6 == 0:
        return ""
    below = max(8, layers - (layers - 2) % 6)
    near = " and ".join(usual(f"cifar-resnet{number}") for number in (below, below + 6))
    return f"a residual network has 6n+2 layers; the nearest are {near}"


def _wide(layers: int, factor: int) -> str:
    good = layers >= 10 and (layers - 4) % 6 == 0 and factor >= 1
    return "" if good else "wrn-D-W needs D = 6n+4 (10, 16, 22, 28, 34, 40 ...) and W >= 1"


NETWORKS = (
    Network(
        "resnetN (N = 6n+2 < 10,000)", r"resnet(?P<layers>\d{1,4})", "hpcsplit.nets.resnet:resnet", _plain_residual
    ),
    Network("cifar-resnetN", r"cifar-resnet(?P<layers>\d{1,4})", "hpcsplit.nets.resnet:resnet", _residual),
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
    Network(
        "gpt-D-W (D layers of width W)",
        r"gpt-(?P<depth>[1-9]\d{0,3})-(?P<width>[1-9]\d{0,4})",
        "hpcsplit.nets.transformer:gpt",
        task="language",
    ),
    Network(
        "vit-D-W (or vit-D-W-P, patches of P x P pixels)",
        r"vit-(?P<depth>[1-9]\d{0,3})-(?P<width>[1-9]\d{0,4})(-(?P<patch>[1-9]\d{0,2}))?",
        "hpcsplit.nets.transformer:vit",
    ),
    Network("torchvision:NAME", r"torchvision:\w+", "hpcsplit.nets.zoo:from_torchvision", whose="a package's"),
    Network("timm:NAME", r"timm:[\w.]+", "hpcsplit.nets.zoo:from_timm", whose="a package's"),
    Network(
        "package.module:factory",
        r"[A-Za-z_][\w.]*:[A-Za-z_]\w*",
        "hpcsplit.nets.custom:custom",
        task="",
        whose="the user's",
    ),
)


def usual(name: str) -> str:
    """The catalog's way to write a name that differs in case, dashes and low lines: "ResNet-20" is resnet20.

    Of two names of one network, such as cifar-resnet20, it is the shorter one.
    """
    kind, colon, rest = name.partition(":")
    if colon:
        return f"{kind.lower()}:{rest.lower()}" if kind.lower() == "torchvision" else name
    lower = name.lower().replace("_", "-")
    together, apart = (re.sub(r"(?<=[a-z])-?(?=\d)", between, lower) for between in ("", "-"))
    for written in (name, lower, together, apart):
        if any(re.fullmatch(network.pattern, written) for network in NETWORKS):
            short = written.removeprefix("cifar-")
            return written if any(short == f"resnet{layers}" for layers in _IMAGENET) else short
    return name


def as_recorded(name: str) -> str:
    """The name that goes into the fingerprint of a run: that of earlier versions, which said resnet50 for
    cifar-resnet50."""
    return name.removeprefix("cifar-")


def of_earlier(name: str) -> str:
    """What a network that an earlier version has recorded under this name is called now; they said resnet50 for
    cifar-resnet50."""
    layers = name.removeprefix("resnet")
    return f"cifar-{name}" if layers != name and layers in map(str, _IMAGENET) else name


def is_users(name: str) -> bool:
    """Whether it is code of the user's own, or of whoever has written that name."""
    return lookup(name).whose == "the user's"


def lookup(name: str) -> Network:
    """The kind that a network of this name is of; ConfigError where there is none, or none with these numbers."""
    for network in NETWORKS:
        if re.fullmatch(network.pattern, name):
            if wrong := network.rule(**network.numbers(name)):
                raise ConfigError(f'model.name = "{name}": {wrong}')
            return network
    raise ConfigError(f'model.name = "{name}" is not one of {", ".join(network.words for network in NETWORKS)}')


def build(
    name: str,
    input_shape: tuple[int, ...],
    classes: int,
    *,
    dtype: torch.dtype | None = None,
    weights: str = "",
    block: str = "post",
    depth: int = 9,
    width: int = 512,
) -> nn.Sequential:
    """The network called `name`, for samples of shape `input_shape`, (C, H, W) of images and (T,) of tokens, and of
    type `dtype` (float32), ending in `classes` logits; auto-encoders end in images and moments.

    Weights come from torch's global random state: seed it first, and every rank builds the same network.  They are then
    replaced by those of the file `weights`, where it is given.
    `block` ("post" or "pre") is read by resnetN only, `depth` (hidden layers) and `width` (neurons) by mlp only.
    Raises ConfigError for a name that no builder knows, for samples that the network does not take, and for a factory
    that breaks the contract above.
    """
    network = lookup(name)
    if block not in ("post", "pre"):
        raise ConfigError(f'model.block = "{block}" is not "post" or "pre"; take one of them')
    builder = pkgutil.resolve_name(network.builder)
    offered: dict[str, Any] = {"name": name, "input_shape": input_shape, "classes": classes, "dtype": dtype}
    offered |= {"weights": weights, "block": block, "depth": depth, "width": width, **network.numbers(name)}
    taken = inspect.signature(builder).parameters
    net: nn.Sequential = builder(**{key: offered[key] for key in taken})
    if weights and "weights" not in taken:
        pkgutil.resolve_name("hpcsplit.nets.weights:begin_with")(weights, net, net, classes)
    return net
