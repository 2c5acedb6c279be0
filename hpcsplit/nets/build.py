"""Networks by name."""

from __future__ import annotations

from torch import nn

from hpcsplit.errors import ConfigError
from hpcsplit.nets.cnn import cnn
from hpcsplit.nets.custom import custom
from hpcsplit.nets.mlp import mlp
from hpcsplit.nets.names import check_model_name
from hpcsplit.nets.resnet import resnet
from hpcsplit.nets.resnet_vae import resnet_vae
from hpcsplit.nets.tssm_resnet import tssm_resnet
from hpcsplit.nets.wideresnet import wide_resnet


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
    check_model_name(name)
    if name == "mlp":
        return mlp(input_shape, classes, depth, width)
    if name == "cnn":
        return cnn(input_shape, classes)
    if name == "tssm-resnet":
        return tssm_resnet(input_shape, classes)
    if ":" in name:
        return custom(name, input_shape, classes)
    if name.startswith("wrn-"):
        layers, factor = name.removeprefix("wrn-").split("-")
        return wide_resnet(int(layers), int(factor), input_shape[0], classes)
    if block not in ("post", "pre"):
        raise ConfigError(f'model.block = "{block}" is not "post" or "pre"; take one of them')
    if name.endswith("-vae"):
        return resnet_vae(int(name.removeprefix("resnet").removesuffix("-vae")), input_shape, block)
    return resnet(int(name.removeprefix("resnet")), input_shape[0], classes, block)
