"""Asking what a network costs leaves it, and torch, exactly as they were."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcsplit.nets.catalog import build
from hpcsplit.nets.shapes import trace
from hpcsplit.plan.blocks import block_costs, block_times

IMAGE = (1, 8, 8)


class Counter(nn.Module):
    """Changes a buffer at every call, in evaluation mode too."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + torch.rand(1)


class Snapshot:
    """Everything that could have changed."""

    def __init__(self, net: nn.Module) -> None:
        tensors = [*net.parameters(), *net.buffers()]
        grads = [p.grad for p in net.parameters()]
        self.exact = [t.clone() for t in (*tensors, *(g for g in grads if g is not None), torch.get_rng_state())]
        self.plain = {
            "identity": [id(t) for t in tensors],
            "device": [t.device for t in tensors],
            "layout": [t.stride() for t in tensors],
            "version": [t._version for t in tensors],
            "has gradient": [g is not None for g in grads],
            "training": [m.training for m in net.modules()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
            "threads": torch.get_num_threads(),
            "gradients enabled": torch.is_grad_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "default device": torch.get_default_device(),
        }


def seconds(net: nn.Sequential, **options: Any) -> Sized:
    return block_times(net, block_costs(net, IMAGE), (4,), repeats=1, **options)[0]


QUESTIONS: dict[str, Callable[[nn.Sequential], Sized]] = {
    "shapes": lambda net: [each.out_shape for each in trace(net, IMAGE)],
    "costs": lambda net: block_costs(net, IMAGE),
    "seconds": lambda net: seconds(net),
    "seconds, plain layout": lambda net: seconds(net, channels_last=False),
    "seconds, autocast": lambda net: seconds(net, autocast_dtype=torch.bfloat16),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_nothing_changes(question: str) -> None:
    net = nn.Sequential(Counter(), *build("resnet8", IMAGE, 3), nn.Dropout(0.5))
    net[2].eval()  # a frozen block among training ones
    net(torch.randn(2, *IMAGE)).sum().backward()
    net[3].zero_grad()
    before = Snapshot(net)
    answer = QUESTIONS[question](net)
    after = Snapshot(net)
    assert len(answer) == len(net)
    assert after.plain == before.plain
    assert len(after.exact) == len(before.exact)
    assert all(torch.equal(old, new) for old, new in zip(before.exact, after.exact, strict=True))
