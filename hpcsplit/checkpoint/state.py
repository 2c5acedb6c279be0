"""A stage as named tensors and back: weights, buffers and optimizer state, by their names in the whole network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

from hpcsplit.errors import CheckpointError
from hpcsplit.files.hdf5 import Header
from hpcsplit.nets.statedict import entry, is_extra, tensors_of, values_of
from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Stage

Tensors = dict[str, torch.Tensor]
Item = TypeVar("Item")
_OTHER = "it belongs to another network: change the code back, or give the run's own configuration"


def stage_tensors(stage: Stage) -> Tensors:
    """Everything that a stage has learned: "weights/<name>", "optim/<name>/<state>", the method's "carry/<name>", and
    "buffers/<name>" for those with persistent=False that training has changed."""
    tensors = {f"weights/{name}": t.cpu() for name, t in stage.state().items()}
    for name, parameter in stage.blocks.named_parameters():
        for key, value in _optimizer_state(stage, parameter).items():
            if value is not None:
                tensors[f"optim/{name}/{key}"] = torch.as_tensor(value).detach().cpu()
    tensors |= {f"buffers/{name}": t.cpu() for name, t in stage.besides.buffers().items()}
    return tensors | {f"carry/{name}": t.detach().cpu() for name, t in stage.carry.items()}


def load_stage(stage: Stage, tensors: Mapping[str, torch.Tensor]) -> None:
    """The reverse of `stage_tensors`.

    Raises:
        CheckpointError: a weight is absent or has another shape or type.
    """
    load_weights(stage.blocks, below("weights/", tensors), below("buffers/", tensors))
    carried = below("carry/", tensors)
    stage.carry = Carry({name: t.to(stage.device) if t.is_floating_point() else t for name, t in carried.items()})
    if stage.optimizer is None:
        return
    stage.optimizer.state.clear()
    names = {id(parameter): name for name, parameter in stage.blocks.named_parameters()}
    for group in stage.optimizer.param_groups:
        for parameter in group["params"]:
            if state := below(f"optim/{names[id(parameter)]}/", tensors):
                on_device = group.get("fused") or group.get("capturable")
                stage.optimizer.state[parameter] = {
                    key: _placed(key, t, parameter, step_on_device=bool(on_device)) for key, t in state.items()
                }


def below(prefix: str, tensors: Mapping[str, Item]) -> dict[str, Item]:
    """The tensors whose names begin so, by the rest of the name."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def load_weights(blocks: nn.Module, weights: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
    """Take up weights, buffers and extra state, and those buffers that are in no state dict.

    Raises:
        CheckpointError: a weight is absent or has another shape or type.
    """
    own = tensors_of(blocks)
    check_weights(weights, own)
    for name, t in own.items():
        if not is_extra(name):
            t.data.copy_(weights[name])
    for name, value in values_of(weights).items():
        if is_extra(name):
            blocks.get_submodule(name.rpartition(".")[0]).set_extra_state(value)
    for name, t in buffers.items():
        owner, _, leaf = name.rpartition(".")
        try:
            before = blocks.get_submodule(owner)._buffers[leaf]
        except (AttributeError, KeyError):
            raise CheckpointError(f"the checkpoint has the buffer {name}, this network has not; {_OTHER}") from None
        if before is not None and (before.shape, before.dtype) == (t.shape, t.dtype):
            before.data.copy_(t)
        else:
            device = next((p.device for p in blocks.parameters()), t.device)
            blocks.get_submodule(owner)._buffers[leaf] = t.to(device)


def check_weights(weights: Mapping[str, torch.Tensor | Header], own: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError where saved weights are not those of a network with `own`, which may be on "meta"."""
    saved, wanted = {entry(name) for name in weights}, {entry(name) for name in own}
    if surplus := sorted(saved - wanted):
        raise CheckpointError(f"the checkpoint has {surplus[0]}, this network has not; {_OTHER}")
    if absent := sorted(wanted - saved):
        raise CheckpointError(f"the checkpoint has no {absent[0]}, this network has; {_OTHER}")
    for name, t in own.items():
        if is_extra(name):
            continue
        there = weights[name]
        if (there.shape, there.dtype) != (t.shape, t.dtype):
            raise CheckpointError(
                f"{name} has shape {tuple(there.shape)} ({there.dtype}) in the checkpoint and {tuple(t.shape)} "
                f"({t.dtype}) in this network; {_OTHER}"
            )


def check_headers(stage: Stage, headers: Mapping[str, Header]) -> None:
    """Raise CheckpointError where a file has weights or optimizer state, not read yet, that this stage cannot have.

    What a method carries along has any shape; a file cannot claim more of it than it has bytes.
    """
    own, sizes = stage.state(), {name: p.numel() for name, p in stage.blocks.named_parameters()}
    for key, header in headers.items():
        kind, _, name = key.partition("/")
        if kind == "weights" and name in own and header.shape != own[name].shape:
            raise CheckpointError(
                f"{name} has shape {header.shape} in the checkpoint and {tuple(own[name].shape)} in this network"
            )
        if kind == "optim" and math.prod(header.shape) > max(1, sizes.get(name.rpartition("/")[0], 0)):
            raise CheckpointError(f"{key} has shape {header.shape} in the checkpoint, more than its weight has")


def _optimizer_state(stage: Stage, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor | None]:
    return stage.optimizer.state.get(parameter, {}) if stage.optimizer else {}


def _placed(key: str, saved: torch.Tensor, parameter: nn.Parameter, *, step_on_device: bool) -> torch.Tensor:
    """A state tensor where the optimizer has left it: in the parameter's place and memory format, other numbers on the
    CPU, but the step counter beside the parameter where a kernel on the device counts (as torch's load_state_dict)."""
    if key == "step":
        return saved.to(parameter.device, copy=True) if step_on_device else saved.clone()
    if saved.shape != parameter.shape:
        return saved.clone()
    return torch.empty_like(parameter, dtype=saved.dtype).copy_(saved)


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """(name, SHA-256 of the bytes) of every tensor, in their order."""
    digests = []
    for name, t in tensors.items():
        plain = t.detach().cpu().resolve_conj().resolve_neg().contiguous()
        raw = plain.reshape(-1).view(torch.uint8).numpy().data
        digests.append((name, hashlib.sha256(raw).hexdigest()))
    return digests


def weights_sha256(stages: Iterable[Iterable[tuple[str, str]]]) -> str:
    """One hash of the whole network from its stages' digests, independent of where it is cut."""
    whole = hashlib.sha256()
    for digests in stages:
        for name, digest in digests:
            whole.update(f"{name} {digest}\n".encode())
    return whole.hexdigest()
