"""What a network has besides its state dict, and which of it training changes: a run that goes on needs that, too."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcsplit.nets.statedict import has_extra_state, passing_buffers

_NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)
_OF_TORCH = vars(nn.Module()).keys()


class Besides:
    """Buffers with persistent=False and plain attributes of the modules, as they were when this was made."""

    def __init__(self, blocks: nn.Module) -> None:
        self._blocks = blocks
        self._buffers = {name: _digest(buffer) for name, buffer in passing_buffers(blocks).items()}
        self._attributes = _attributes(blocks)

    def buffers(self) -> dict[str, torch.Tensor]:
        """The buffers with persistent=False that have changed since, by their names in the whole network."""
        now = passing_buffers(self._blocks)
        return {name: buffer for name, buffer in now.items() if self._buffers.get(name) != _digest(buffer)}

    def attributes(self) -> list[str]:
        """The attributes that have changed since: counters, tensors that are no buffers, random generators.  Those
        that were not there before, tensors with a gradient and modules with an extra state are left out."""
        now = _attributes(self._blocks)
        return [name for name, digest in self._attributes.items() if now.get(name, digest) != digest]


def _attributes(blocks: nn.Module) -> dict[str, str]:
    return {
        f"{prefix}.{name}".removeprefix("."): digest
        for prefix, module in blocks.named_modules()
        if not has_extra_state(module)
        for name, value in vars(module).items()
        if name not in _OF_TORCH and (digest := _digest(value))
    }


def _digest(value: Any) -> str:
    """A hash of what is there to change, or "" where that cannot be told."""
    if isinstance(value, torch.Tensor):
        if value.requires_grad or value.is_meta or value.layout != torch.strided:
            return ""
        content = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + content.numpy().tobytes()).hexdigest()
    if isinstance(value, _NUMBERS):
        return repr(value)
    if isinstance(value, np.ndarray):
        return hashlib.sha256(repr((value.dtype, value.shape)).encode() + value.tobytes()).hexdigest()
    if isinstance(value, random.Random):
        return repr(hash(value.getstate()))
    if isinstance(value, np.random.Generator):
        return _digest(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return _digest(value.get_state(legacy=False))
    if isinstance(value, torch.Generator):
        return _digest(value.get_state())
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{_digest(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | deque):
        return "[" + ",".join(map(_digest, value)) + "]"
    return ""
