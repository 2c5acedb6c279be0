"""What passes between the blocks, found on meta tensors: no memory, no arithmetic, and the network stays untouched.

A block that looks at values as it computes is passed on the CPU instead, with random ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hpcsplit.errors import ConfigError
from hpcsplit.host.blame import block_label, other_types, said

Seen = TypeVar("Seen")
FEW = 2  # samples


@dataclass(frozen=True)
class Pass:
    """One block's pass; shapes are of one sample, without the batch dimension."""

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    flops: int  # multiply-adds of convolutions and matrix products, forward, one sample
    by_value: bool  # the block looks at values, so that with others it may have another course


def trace(net: nn.Sequential, input_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> list[Pass]:
    """Pass a few samples (of one alone, squeeze() would take the dimension) of shape `input_shape` through the blocks.

    In evaluation mode, and on a copy, so that nothing in `net` changes.
    Raises ConfigError, naming the block, where a block does not take or does not return one tensor.
    """
    shadow, x, result = Shadow(net, training=False), meta_sample(net, input_shape, FEW, dtype), []
    for index in range(len(net)):
        try:
            with torch.no_grad():
                y, counter, by_value = shadow.passed(index, x, lambda: FlopCounterMode(display=False))
        except Exception as error:
            before = f"; {block_label(net, index - 1)} before it returns that" if index else ""
            raise ConfigError(
                f"{block_label(net, index, error)} of the network does not take samples of shape {tuple(x.shape[1:])} "
                f"({said(error)}){other_types(net[index])}{before}"
            ) from error
        if not isinstance(y, Tensor) or not y.is_floating_point():
            kind = f"{y.dtype} numbers" if isinstance(y, Tensor) else type(y).__name__
            raise ConfigError(
                f"{block_label(net, index)} of the network returns {kind}; a block returns one tensor of floating "
                "point, so that the network can be cut behind it"
            )
        flops = counter.get_total_flops() // (2 * FEW)  # the counter takes a multiply-add as two
        result.append(Pass(tuple(x.shape[1:]), tuple(y.shape[1:]), flops, by_value))
        x = y
    return result


class Shadow:
    """A copy of a network for tensors without values; a block that cannot do without gets random ones on the CPU."""

    def __init__(self, net: nn.Sequential, *, training: bool) -> None:
        self._net, self._training = net, training
        self.blocks = twin(net, "meta").train(training)

    def passed(
        self, index: int, x: Tensor, around: Callable[[], AbstractContextManager[Seen]]
    ) -> tuple[Any, Seen, bool]:
        """What block `index` makes of a meta tensor x, on meta again; what was around that pass; whether it needed
        values.  Whatever the block raises on the CPU is raised."""
        try:
            with around() as seen, torch.device("meta"):
                return self.blocks[index](x), seen, False
        except Exception:  # no values, or wrong: the CPU will tell
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.manual_seed(0)
                block = twin(self._net[index], "cpu").train(self._training)
                values = some_values(x).requires_grad_(x.requires_grad)
                with around() as seen:
                    y = block(values)
            return y.to("meta") if isinstance(y, Tensor) else y, seen, True


Module = TypeVar("Module", bound=nn.Module)


def twin(module: Module, device: torch.device | str) -> Module:
    """A copy of a module on another device; weights that are on meta get random values of a sane size there.

    Tensors that are neither weights nor buffers follow to meta only: `to` leaves them where they are, too.  Anything
    else that refuses to be copied, such as an open file, is shared.
    Raises ConfigError where a module refuses as a whole.
    """
    device = torch.device(device)
    memo: dict[int, object] = {  # first constants, and what old weight_norm makes of its weights: no copy of a graph
        id(value): value.detach().to(device if device.type == "meta" else value.device, copy=True)
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor)
    }
    for part in module.modules():
        memo |= {
            id(p): nn.Parameter(_moved(p, device), p.requires_grad) for p in part._parameters.values() if p is not None
        }
        memo |= {id(b): _moved(b, device, buffer=True) for b in part._buffers.values() if b is not None}
    try:
        return copy.deepcopy(module, dict(memo))
    except Exception:
        _share_what_refuses(module, memo)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise ConfigError(
            f"{type(module).__name__} of the network cannot be copied ({said(error)}); leave out what forbids it"
        ) from error


def _share_what_refuses(module: nn.Module, memo: dict[int, object]) -> None:
    for part in module.modules():
        for name, value in vars(part).items():
            if name in ("_modules", "_parameters", "_buffers") or id(value) in memo:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                memo[id(value)] = value


def _moved(t: Tensor, device: torch.device, *, buffer: bool = False) -> Tensor:
    """A copy on the device; one of a meta tensor is full of small random numbers, of ones in a buffer."""
    if not t.is_meta or device.type == "meta":
        return t.detach().to(device, copy=True)
    made = torch.empty_like(t, device=device)
    return made.fill_(1) if buffer or not made.is_floating_point() else made.normal_(std=0.05)


def meta_sample(net: nn.Module, input_shape: Sequence[int], size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """So many samples without values, of type `dtype`; floating point is in the type of the weights."""
    if dtype.is_floating_point:
        floating = (p.dtype for p in net.parameters() if p.is_floating_point())
        dtype = next(floating, torch.get_default_dtype())
    return torch.empty(size, *input_shape, device="meta", dtype=dtype)


def some_values(t: Tensor) -> Tensor:
    """A tensor like a meta one, on the CPU: random numbers, or zeros, which every table has, where they are whole."""
    return torch.randn(t.shape, dtype=t.dtype) if t.is_floating_point() else torch.zeros(t.shape, dtype=t.dtype)
