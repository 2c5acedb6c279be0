"""What one block costs: its parameters, its multiply-adds, or its measured seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hpcsplit.host.device import wait_for
from hpcsplit.nets.shapes import Pass, Shadow, meta_sample, some_values, trace, twin
from hpcsplit.stage.deferred import DeferredGradients


@dataclass(frozen=True)
class BlockCost(Pass):
    """A block as the planner sees it, with the numbers that it trains.

    FLOPs are in the unit of the papers' tables, where one multiply-add counts once.  Normalisation, activation, pooling
    and bias are not counted, so a block of those alone costs 0.
    """

    name: str
    params: int


def block_costs(net: nn.Sequential, input_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> list[BlockCost]:
    """Everything about the blocks that needs no measurement, found without arithmetic and without touching `net`, which
    takes samples of type `dtype`.

    Works for a network on the meta device too. Raises ConfigError as hpcsplit.nets.shapes.trace.
    """
    params = [sum(parameter.numel() for parameter in block.parameters()) for block in net]
    blocks = zip(trace(net, input_shape, dtype), net._modules, params, strict=True)
    return [BlockCost(**vars(seen), name=name, params=count) for seen, name, count in blocks]


def kept_bytes(net: nn.Sequential, input_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> list[int]:
    """What autograd keeps for the backward pass of each block, of one sample; a tensor that two blocks share counts
    for the first of them."""
    shadow = Shadow(net, training=True)
    few, more = (
        _kept(shadow, meta_sample(net, input_shape, size, dtype)) for size in (2, 4)
    )  # what is kept once drops out
    return [(b - a) // 2 for a, b in zip(few, more, strict=True)]


def _kept(shadow: Shadow, x: Tensor) -> list[int]:
    weights = {t.untyped_storage()._cdata for t in (*shadow.blocks.parameters(), *shadow.blocks.buffers())}
    before: dict[int, Tensor] = {}  # held, so that no storage takes the place of another

    @contextmanager
    def noticed() -> Iterator[dict[int, Tensor]]:
        """What autograd keeps inside and did not before, by its storage."""
        seen: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            key = tensor.untyped_storage()._cdata
            if key not in weights and key not in before and not isinstance(tensor, nn.Parameter):
                seen.setdefault(key, tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            yield seen

    counts = []
    with torch.enable_grad():
        for index in range(len(shadow.blocks)):
            x, seen, _ = shadow.passed(index, x, noticed)
            before |= seen
            counts.append(sum(t.untyped_storage().nbytes() for t in seen.values()))
    return counts


@dataclass(frozen=True)
class BlockTime:
    """Seconds of a block for one mini-batch: the forward pass, and the gradients of weights and input; `weights_s` of
    these are those of weights that wait (stage/deferred.py)."""

    forward_s: float
    backward_s: float
    weights_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.forward_s + self.backward_s


def block_times(
    net: nn.Sequential,
    costs: Sequence[BlockCost],
    sizes: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    deferred: Sequence[int] = (),
    repeats: int = 9,
    channels_last: bool = True,
    autocast_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> list[list[BlockTime]]:
    """Seconds of each block for one mini-batch of each of these sizes: forward, then gradients of weights and input;
    then the same of each size in `deferred`, with weight gradients that wait until the input has its own.

    The lower quartile of `repeats` rounds after a warm-up, in which all sizes and blocks take turns as in a step, on
    random inputs, in training mode: what else the machine does only ever adds time. The samples, the first block's
    input of type `dtype`, need no gradient. Blocks that look alike (same modules, shapes and multiply-adds) are
    measured once and get the same number, so noise does not favour one of them. Each measurement runs on a copy of its
    block on `device` (random weights for a meta network): weights, buffers, gradients, training flags and torch's
    random state stay as they are.
    """
    assert min(*sizes, repeats) >= 1
    asked = [(size, False) for size in sizes] + [(size, True) for size in deferred]
    device = torch.device(device)
    kinds: dict[tuple[object, ...], tuple[nn.Module, list[Tensor], DeferredGradients]] = {}
    looks = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        for index, (block, cost) in enumerate(zip(net, costs, strict=True)):
            look = (index > 0, str(block), cost.params, cost.flops, cost.in_shape, cost.out_shape)
            looks.append(look)
            if look not in kinds:
                kind = torch.float32 if index else dtype
                xs = [some_values(meta_sample(block, cost.in_shape, size, kind)).to(device) for size, _ in asked]
                copy = twin(block, device).train()
                if channels_last:
                    copy = copy.to(memory_format=torch.channels_last)
                    xs = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in xs]
                kinds[look] = copy, [x.requires_grad_(index > 0) for x in xs], DeferredGradients()
        rounds = [
            [
                [_seconds(block, xs[n], autocast_dtype, queue if late else None) for block, xs, queue in kinds.values()]
                for n, (_, late) in enumerate(asked)
            ]
            for _ in range(1 + repeats)
        ]
    result = []
    for quartiles in np.quantile(rounds[1:], 0.25, axis=0).tolist():
        times = [BlockTime(min(f, both), max(both - f, 0.0), max(both - first, 0.0)) for both, first, f in quartiles]
        of_look = dict(zip(kinds, times, strict=True))
        result.append([of_look[look] for look in looks])
    return result


def _seconds(
    block: nn.Module, x: Tensor, autocast_dtype: torch.dtype | None, queue: DeferredGradients | None = None
) -> tuple[float, float, float]:
    """Of both passes, of them without weight gradients that wait in the queue, and of the forward one."""
    block.zero_grad()
    x.grad = None
    wait_for(x.device)
    start = time.perf_counter()
    with (
        torch.autocast(x.device.type, autocast_dtype) if autocast_dtype else nullcontext(),
        nullcontext() if queue is None else queue.active(),
    ):
        y = block(x)
    wait_for(x.device)
    forward = time.perf_counter() - start
    if y.requires_grad:
        y.backward(torch.ones_like(y))
    wait_for(x.device)
    first = time.perf_counter() - start
    if not queue:  # none, or nothing in it
        return first, first, forward
    queue.finish()
    wait_for(x.device)
    return time.perf_counter() - start, first, forward
