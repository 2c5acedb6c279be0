"""torchvision's and timm's networks as blocks: their own numbers and gradients, sizes, channels; or a sentence."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build
from hpcsplit.nets.shapes import trace

CLASSES = 7
FAMILIES = {  # the smallest of each family, with the size of its images and the number of its blocks
    "resnet18": (32, 10),
    "wide_resnet50_2": (32, 18),
    "resnext50_32x4d": (32, 18),
    "convnext_tiny": (32, 23),
    "efficientnet_b0": (32, 19),
    "efficientnet_v2_s": (32, 43),
    "mobilenet_v2": (32, 20),
    "mobilenet_v3_small": (32, 15),
    "vgg11": (32, 11),
    "vgg11_bn": (32, 11),
    "vit_b_32": (32, 14),
    "swin_t": (32, 17),
    "swin_v2_t": (32, 17),
}
timm_is_there = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def compared(module: nn.Module, blocks: nn.Sequential, image: tuple[int, int, int]) -> None:
    """The same outputs in evaluation and in training mode, and gradients, to the bit, random layers included."""
    assert {id(p) for p in module.parameters()} == {id(p) for p in blocks.parameters()}
    x = torch.randn(2, *image)
    with torch.no_grad():
        assert torch.equal(module.eval()(x), blocks.eval()(x))
    answers: list[list[Any]] = []
    for act in (module.train(), blocks.train()):
        torch.manual_seed(3)
        module.zero_grad()
        y: Tensor = act(x)
        y.square().sum().backward()
        answers.append([y.detach(), *(p.grad for p in module.parameters())])
    assert all(map(torch.equal, *answers))


def watched(monkeypatch: pytest.MonkeyPatch, package: Any, function: str) -> list[nn.Module]:
    """The networks that this function of a package will have made."""
    made: list[nn.Module] = []
    original = getattr(package, function)

    def make(*args: Any, **options: Any) -> nn.Module:
        made.append(original(*args, **options))
        return made[-1]

    monkeypatch.setattr(package, function, make)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_as_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = watched(monkeypatch, models, "get_model")
    size, count = FAMILIES[name]
    blocks = build(f"torchvision:{name}", (3, size, size), CLASSES)
    assert len(blocks) == count
    compared(made[0], blocks, (3, size, size))


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(channels: int) -> None:
    torch.manual_seed(2)
    blocks = build("torchvision:resnet18", (channels, 32, 32), CLASSES)
    torch.manual_seed(2)
    theirs = models.resnet18(num_classes=CLASSES).conv1.weight
    assert trace(blocks, (channels, 32, 32))[-1].out_shape == (CLASSES,)
    ours = blocks.state_dict()["conv1.conv1.weight"]
    assert all(torch.equal(ours[:, c], theirs[:, c % 3]) for c in range(channels))


def test_names_of_blocks_and_parameters() -> None:
    """The head of chain.py says how they are called."""
    blocks = build("torchvision:resnet18", (3, 32, 32), CLASSES)
    assert list(blocks._modules)[:4] == ["conv1", "layer1_0", "layer1_1", "layer2_0"]
    assert isinstance(blocks[1], models.resnet.BasicBlock)
    names = blocks.state_dict().keys()
    assert names >= {"conv1.conv1.weight", "conv1.bn1.running_mean", "layer1_0.conv1.weight", "fc.bias"}


@timm_is_there
@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("vit_tiny_patch16_224", (3, 32, 48)),
        ("convnext_atto", (3, 32, 32)),
        ("resnet10t", (1, 32, 32)),
        ("swin_tiny_patch4_window7_224", (3, 64, 64)),
    ],
)
def test_the_same_as_timm(name: str, image: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    made = watched(monkeypatch, timm, "create_model")
    blocks = build(f"timm:{name}", image, CLASSES)
    assert len(blocks) >= 5
    compared(made[-1], blocks, image)


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        (
            "torchvision:resnet19",
            (3, 32, 32),
            "no network for classification of that name; did you mean torchvision:resnet1",
        ),
        ("torchvision:fcn_resnet50", (3, 32, 32), "no network for classification of that name"),
        ("torchvision:zzz", (3, 32, 32), "that name; see torchvision's list"),
        (
            "torchvision:googlenet",
            (3, 64, 64),
            "something else in training than in evaluation .*; take another network",
        ),
        (
            "torchvision:vit_b_32",
            (3, 48, 48),
            r"not made for images of shape \(3, 48, 48\) \(AssertionError: .*indivisible",
        ),
        (
            "torchvision:vit_b_32",
            (3, 32, 64),
            r"does not take samples of shape \(3, 32, 64\) \(AssertionError: Wrong image",
        ),
        ("torchvision:alexnet", (3, 8, 8), r"does not take samples of shape \(3, 8, 8\)"),
        ("torchvision:resnet18", (12,), r"takes images, not samples of shape \(12,\)"),
        pytest.param(
            "timm:resnet19", (3, 32, 32), "timm has no network .*did you mean timm:resnet1", marks=timm_is_there
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_what_is_refused(name: str, image: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=f'^model.name = "{name}".*{words}'):
        build(name, image, CLASSES)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm cannot be imported .*; pip install timm$"):
        build("timm:resnet18", (3, 32, 32), CLASSES)
