"""Transformers against torch's own layers, closed forms, and whole-network autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build
from hpcsplit.nets.code import function_of
from hpcsplit.nets.transformer import heads_of
from hpcsplit.plan.blocks import block_costs, block_times, kept_bytes
from tests.methods import tiny

TOKENS, WORDS = 6, 11


def gpt(depth: int = 3, width: int = 128) -> nn.Sequential:
    torch.manual_seed(4)
    return build(f"gpt-{depth}-{width}", (TOKENS,), WORDS, dtype=torch.int64)


def torchs(layer: nn.Module, width: int) -> nn.TransformerEncoderLayer:
    """torch's pre-norm layer with the weights of ours."""
    theirs = nn.TransformerEncoderLayer(
        width, heads_of(width), 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    ours = layer.state_dict()
    names = {
        "self_attn.in_proj_weight": "attention.inputs.weight",
        "self_attn.in_proj_bias": "attention.inputs.bias",
        "self_attn.out_proj.weight": "attention.output.weight",
        "self_attn.out_proj.bias": "attention.output.bias",
        **{f"linear1.{kind}": f"mlp.hidden.{kind}" for kind in ("weight", "bias")},
        **{f"linear2.{kind}": f"mlp.output.{kind}" for kind in ("weight", "bias")},
        **{f"norm{n}.{kind}": f"norm{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")},
    }
    theirs.load_state_dict({key: ours[name] for key, name in names.items()})
    return theirs.double()


@pytest.mark.parametrize("width", [64, 128, 96])
def test_gpt_is_torchs_layers_behind_each_other(width: int) -> None:
    net: Any = gpt(2, width).double()
    ids = torch.randint(WORDS, (3, TOKENS))
    x = net[0].token.weight[ids] + net[0].place
    for block in list(net)[1:-1]:
        mask = nn.Transformer.generate_square_subsequent_mask(TOKENS, dtype=torch.float64)
        x = torchs(block, width)(x, mask, is_causal=True)
    expected = F.layer_norm(x, (width,), *net[-1].norm.parameters()) @ net[-1].logits.weight.T
    torch.testing.assert_close(net(ids), expected, rtol=1e-10, atol=1e-12)


def test_vit_is_torchs_layers_behind_each_other() -> None:
    torch.manual_seed(4)
    net: Any = build("vit-2-64-4", (3, 8, 16), WORDS).double()
    images = torch.randn(3, 3, 8, 16, dtype=torch.float64)
    patches = F.unfold(images, 4, stride=4).transpose(1, 2)  # (B, N, C P P)
    x = patches @ net[0].patch.weight.flatten(1).T + net[0].patch.bias + net[0].place
    for block in list(net)[1:-1]:
        x = torchs(block, 64)(x)
    x = F.layer_norm(x, (64,), *net[-1].norm.parameters()).mean(1)
    torch.testing.assert_close(net(images), net[-1].logits(x), rtol=1e-10, atol=1e-12)


def test_no_token_sees_those_that_come() -> None:
    net = gpt()
    ids = torch.randint(WORDS, (1, TOKENS))
    other = ids.clone()
    other[0, 4:] = (ids[0, 4:] + 1) % WORDS
    a, b = net(ids), net(other)
    assert torch.equal(a[:, :4], b[:, :4])
    assert not torch.isclose(a[:, 4:], b[:, 4:]).all(-1).any()


def test_blocks_and_costs() -> None:
    """Parameters and multiply-adds in closed form, with attention: T² W for the scores, and again for the sums."""
    depth, width = 3, 128
    costs = block_costs(gpt(), (TOKENS,), torch.int64)
    assert [cost.name for cost in costs] == ["embed", "block1", "block2", "block3", "head"]
    assert [cost.out_shape for cost in costs] == [(TOKENS, width)] * (1 + depth) + [(TOKENS, WORDS)]
    layer = 12 * width**2 + 13 * width
    assert [cost.params for cost in costs] == [(WORDS + TOKENS) * width, *[layer] * depth, (2 + WORDS) * width]
    attention = 2 * TOKENS**2 * width
    flops = [0, *[12 * width**2 * TOKENS + attention] * depth, WORDS * width * TOKENS]
    assert [cost.flops for cost in costs] == flops
    assert all(kept > 0 for kept in kept_bytes(gpt(), (TOKENS,), torch.int64)[1:])


def test_initial_weights_of_gpt_2() -> None:
    for name, parameter in gpt(4, 256).named_parameters():
        p = parameter.detach()
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(p, torch.full_like(p, float("norm" in name and name.endswith("weight"))))
        else:
            std = 0.02 / math.sqrt(8) if name.endswith("output.weight") else 0.02
            assert float(p.std()) == pytest.approx(std, rel=0.1), name
            assert abs(float(p.mean())) < 0.2 * std


@pytest.mark.parametrize(
    ("width", "heads"), [(8, 1), (64, 1), (100, 1), (128, 2), (384, 6), (200, 2), (260, 4), (450, 6)]
)
def test_heads(width: int, heads: int) -> None:
    assert heads_of(width) == heads
    assert width % heads == 0


@pytest.mark.parametrize(
    ("name", "image", "patches"),
    [
        ("vit-1-16", (3, 32, 32), 16),  # of 8 x 8
        ("vit-1-16", (1, 28, 28), 49),  # 4 x 4
        ("vit-1-16", (3, 224, 224), 196),  # 16 x 16
        ("vit-1-16", (3, 64, 16), 16),  # 8 x 8
        ("vit-1-16", (1, 8, 8), 16),  # 2 x 2
        ("vit-1-16-16", (3, 32, 32), 4),
        ("vit-1-16-7", (1, 28, 14), 8),
    ],
)
def test_patches(name: str, image: tuple[int, ...], patches: int) -> None:
    with torch.device("meta"):
        costs = block_costs(build(name, image, 5), image)
    assert [cost.out_shape for cost in costs] == [(patches, 16), (patches, 16), (5,)]


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("gpt-2-8", (3, 8, 8), r"takes rows of tokens, not samples of shape \(3, 8, 8\); take a text"),
        ("vit-2-8", (64,), r"takes images, not samples of shape \(64,\)"),
        ("vit-2-8", (1, 7, 7), "7 x 7 pixels cannot be cut into 16 patches or more"),
        ("vit-2-8-5", (3, 32, 32), "32 x 32 pixels cannot be cut into patches of 5 x 5"),
        ("gpt-0-8", (8,), "is not one of"),
        ("vit-2", (8,), "is not one of"),
    ],
)
def test_what_is_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(name, shape, 5)


@pytest.mark.parametrize("cuts", [(), (2,), (1, 3)])
def test_stages_train_as_autograd_on_the_whole(cuts: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    shape = (1, 8, 8)
    net = build("vit-2-16", shape, 3).double()
    images, labels = tiny.batch_of(shape)
    stages = tiny.trained_beside(net, net, cuts, images, labels)
    trained: list[Tensor] = [p for stage in stages for p in stage.parameters]
    for ours, theirs in zip(trained, net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_what_looks_at_a_network_gives_it_tokens() -> None:
    """The measured times and the sampled function."""
    net = gpt(1, 16)
    costs = block_costs(net, (TOKENS,), torch.int64)
    [times] = block_times(net, costs, [2], dtype=torch.int64, repeats=1)
    assert all(each.seconds > 0 for each in times)
    assert function_of(lambda: gpt(1, 16), (TOKENS,), torch.int64)
    assert function_of(lambda: gpt(1, 16), (TOKENS,), torch.int64) != function_of(
        lambda: gpt(2, 16), (TOKENS,), torch.int64
    )
