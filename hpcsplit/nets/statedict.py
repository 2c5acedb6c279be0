"""A module's state as tensors alone: weights, buffers, and the extra state that some modules have besides.

`get_extra_state` may return anything.  A tensor stays what it is; of plain values, such as {"steps": 3, "ema": tensor},
the tensors are taken out and the rest becomes a text:

    layer._extra_state        the tensor
    layer._extra_state.json   uint8, the bytes of {"steps": 3, "ema": {"__tensor__": 0}}
    layer._extra_state.0      the tensor number 0 in it
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hpcsplit.errors import ConfigError

_EXTRA = re.compile(r"((?:.*\.)?_extra_state)(?:\.(json|\d+))?")
_MARK = "__tensor__"


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights and persistent buffers by name, in their order, extra state among them.

    Raises ConfigError, naming the module, where its extra state is more than tensors and plain values.
    """
    flat: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if _EXTRA.fullmatch(name) and not isinstance(value, Tensor):
            flat |= _flattened(name, value)
        else:
            flat[name] = value.detach()
    return flat


def values_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict that `tensors_of` has made these of."""
    state: dict[str, Any] = {}
    for name, t in tensors.items():
        base, part = _split(name)
        if part == "json":
            state[base] = json.loads(bytes(t.tolist()).decode(), object_hook=partial(_tensor, base, tensors))
        elif not part:
            state[name] = t
    return state


def has_extra_state(module: nn.Module) -> bool:
    """Whether a module has an extra state of its own."""
    return type(module).get_extra_state is not nn.Module.get_extra_state


def is_extra(name: str) -> bool:
    """Whether a tensor of `tensors_of` is a part of an extra state, whose shape and type may change in training."""
    return _EXTRA.fullmatch(name) is not None


def entry(name: str) -> str:
    """The entry of the state dict that a tensor of `tensors_of` belongs to."""
    return _split(name)[0]


def passing_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that are in no state dict (register_buffer with persistent=False), by name."""
    persistent = module.state_dict(keep_vars=True).keys()
    return {name: buffer.detach() for name, buffer in module.named_buffers() if name not in persistent}


def check_state(module: nn.Module) -> None:
    """Raise ConfigError where a checkpoint could not keep the state of a module."""
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        kind = str(t.layout).removeprefix("torch.")
        if kind != "strided" or t.is_quantized:
            raise ConfigError(
                f"{name} of the network is a {'quantized' if t.is_quantized else kind} tensor, which no checkpoint can "
                "keep; make it a dense one, and convert it in the forward pass"
            )
    for name, part in module.named_modules():
        if has_extra_state(part) and type(part).set_extra_state is nn.Module.set_extra_state:
            raise ConfigError(
                f"{name} of the network has get_extra_state without set_extra_state, so a checkpoint could not give it "
                "back; define both"
            )
    tensors_of(module)


def _split(name: str) -> tuple[str, str]:
    result = _EXTRA.fullmatch(name)
    return (result[1], result[2] or "") if result else (name, "")


def _flattened(name: str, value: Any) -> dict[str, Tensor]:
    inner: dict[str, Tensor] = {}

    def plain(part: Any) -> Any:
        """The same with numbered marks for tensors; only what JSON gives back as it was."""
        if isinstance(part, Tensor):
            inner[f"{name}.{len(inner)}"] = part.detach()
            return {_MARK: len(inner) - 1}
        if isinstance(part, dict) and all(isinstance(key, str) for key in part) and _MARK not in part:
            return {key: plain(item) for key, item in part.items()}
        if type(part) is list:
            return [plain(item) for item in part]
        if part is None or type(part) in (bool, int, float, str):
            return part
        raise ConfigError(
            f"{name.rpartition('.')[0] or 'a block'}: get_extra_state of the network returns {type(part).__name__}, "
            "which no checkpoint keeps; return tensors, numbers, texts, and lists or dicts (with texts as keys) of them"
        )

    text = json.dumps(plain(value)).encode()
    return {f"{name}.json": torch.tensor(list(text), dtype=torch.uint8, device="cpu"), **inner}


def _tensor(base: str, tensors: Mapping[str, Tensor], result: dict[str, Any]) -> Any:
    return tensors[f"{base}.{result[_MARK]}"] if _MARK in result else result
