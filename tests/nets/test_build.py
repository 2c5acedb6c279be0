"""What every network promises: named blocks, known sizes, inputs left alone, cuts that change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hpcsplit.data.catalog import lookup
from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build
from hpcsplit.nets.shapes import trace

FAMILIES = [
    ("resnet8", {}),
    ("resnet8", {"block": "pre"}),
    ("wrn-10-2", {}),
    ("mlp", {"depth": 3, "width": 16}),
    ("cnn", {}),
    ("tssm-resnet", {}),
]
IMAGES = [(1, 28, 28), (3, 32, 32), (1, 32, 32)]
SMALL = (2, 9, 9)  # odd, so that the halved sizes are rounded


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(params=FAMILIES, ids=lambda family: "-".join([family[0], *map(str, family[1].values())]))
def family(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    chosen: tuple[str, dict[str, Any]] = request.param
    return chosen


@pytest.fixture
def net(family: tuple[str, dict[str, Any]]) -> nn.Sequential:
    torch.manual_seed(3)
    return build(family[0], SMALL, 7, **family[1])


@pytest.mark.parametrize(
    ("name", "block", "classes", "count"),
    [
        ("resnet20", "post", 10, 269_722),  # He 2016a, table 6: 0.27 M
        ("resnet110", "post", 10, 1_727_962),  # 1.7 M
        ("resnet110", "pre", 10, 1_727_962),  # the norms move, their number of channels is the same
        ("wrn-28-10", "post", 10, 36_479_194),  # Zagoruyko 2016, table 4: 36.5 M
        ("wrn-40-10", "post", 100, 55_899_444),  # 55.8 M with 10 classes
    ],
)
def test_parameter_counts_of_the_papers(name: str, block: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build(name, (3, 32, 32), classes, block=block)) == count


@pytest.mark.parametrize(
    ("name", "cut_behind", "shape"),
    [
        ("resnet110", "group1_block18", (16, 32, 32)),
        ("resnet110", "group2_block9", (32, 16, 16)),
        ("resnet110", "group2_block18", (32, 16, 16)),
        ("resnet110", "group3_block18", (64, 8, 8)),
        ("wrn-40-10", "group1_block6", (160, 32, 32)),
        ("wrn-40-10", "group2_block6", (320, 16, 16)),
    ],
)
def test_boundary_shapes_of_the_memory_table(name: str, cut_behind: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        net = build(name, (3, 32, 32), 10)
    shapes = dict(zip(net._modules, (each.out_shape for each in trace(net, (3, 32, 32))), strict=True))
    assert shapes[cut_behind] == shape


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_blocks_return_the_shapes_that_were_forecast(
    family: tuple[str, dict[str, Any]], image: tuple[int, int, int]
) -> None:
    net = build(family[0], image, 7, **family[1]).eval()
    x = torch.randn(2, *image)
    measured = []
    for block in net:
        x = block(x)
        measured.append(tuple(x.shape[1:]))
    assert [each.out_shape for each in trace(net, image)] == measured
    assert measured[-1] == (7,)


@pytest.mark.parametrize(
    ("dataset", "features"),
    [("mnist", 196), ("fashion_mnist", 196), ("kmnist", 196), ("svhn", 768), ("cifar10", 768), ("cifar100", 768)],
)
def test_the_feed_forward_network_of_the_papers(dataset: str, features: int) -> None:
    """TSSM, section 3.2.1 and appendix: nine hidden layers of 512 neurons on pooled images."""
    spec = lookup(dataset)
    with torch.device("meta"):
        net = build("mlp", spec.input_shape(pool=True), spec.classes)
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [
        (features, 512),
        *[(512, 512)] * 8,
        (512, spec.classes),
    ]
    assert sum(isinstance(m, nn.ReLU) for m in net.modules()) == 9


def test_the_small_convolutional_network_of_tssm() -> None:
    """Section 3.2.1: twice 32 filters of 3 x 3 and a pooling of 2 x 2, then two layers of 512."""
    net = build("cnn", (3, 32, 32), 10)
    assert [m.kernel_size for m in net.modules() if isinstance(m, nn.Conv2d)] == [(3, 3)] * 2
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [32, 32]
    assert [m.kernel_size for m in net.modules() if isinstance(m, nn.MaxPool2d)] == [2, 2]
    assert [m.out_features for m in net.modules() if isinstance(m, nn.Linear)] == [512, 512, 10]


def test_sizes_are_halved_rounding_up() -> None:
    shapes = [each.out_shape for each in trace(build("resnet8", (1, 28, 28), 10), (1, 28, 28))]
    assert shapes == [(16, 28, 28), (16, 28, 28), (32, 14, 14), (64, 7, 7), (10,)]
    halved = trace(build("resnet8", (1, 7, 7), 10), (1, 7, 7))[2:4]
    assert [each.out_shape for each in halved] == [(32, 4, 4), (64, 2, 2)]


def test_block_names() -> None:
    assert list(build("resnet14", SMALL, 2)._modules) == [
        "stem",
        *(f"group{group}_block{index}" for group in (1, 2, 3) for index in (1, 2)),
        "head",
    ]
    assert list(build("wrn-10-1", SMALL, 2)._modules) == [
        "stem",
        "group1_block1",
        "group2_block1",
        "group3_block1",
        "head",
    ]
    assert list(build("mlp", SMALL, 2)._modules) == [*(f"hidden{index}" for index in range(1, 10)), "head"]
    assert list(build("cnn", SMALL, 2)._modules) == ["conv1", "conv2", "fc1", "fc2", "head"]
    blocks = [f"block{index}" for index in range(1, 25)]
    assert list(build("tssm-resnet", SMALL, 2)._modules) == ["stem", *blocks, "fc1", "fc2", "head"]


@pytest.mark.parametrize("training", [True, False])
def test_a_block_never_changes_its_input(net: nn.Sequential, training: bool) -> None:
    net.train(training)
    x = torch.randn(4, *SMALL)
    for block in net:
        before = x.clone()
        y = block(x)
        assert torch.equal(x, before)
        x = y.detach()


def test_gradients_reach_every_parameter_and_the_images(net: nn.Sequential) -> None:
    x = torch.randn(4, *SMALL, requires_grad=True)
    nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 2, 3])).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("training", [True, False])
def test_slices_composed_are_the_whole_to_the_bit(net: nn.Sequential, training: bool) -> None:
    net.train(training)
    x = torch.randn(4, *SMALL)
    whole = net(x)
    for cut in range(1, len(net)):
        boundary = net[:cut](x).detach().clone()
        assert torch.equal(net[cut:](boundary), whole)


def test_the_seed_decides_the_weights(family: tuple[str, dict[str, Any]]) -> None:
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(nn.utils.parameters_to_vector(build(family[0], SMALL, 3, **family[1]).parameters()))
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


def test_a_network_on_the_meta_device_has_no_memory(family: tuple[str, dict[str, Any]]) -> None:
    with torch.device("meta"):
        net = build(family[0], SMALL, 3, **family[1])
    assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert trace(net, SMALL)[-1].out_shape == (3,)


@pytest.mark.parametrize("name", ["resnet21", "wrn-11-1", "vgg", "resnet2", "tssm-resnet2"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        build(name, (3, 32, 32), 10)


def test_an_unknown_kind_of_block_is_refused() -> None:
    with pytest.raises(ConfigError, match='"sideways" is not "post" or "pre"'):
        build("resnet8", (3, 32, 32), 10, block="sideways")
