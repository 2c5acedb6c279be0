"""A stage as named tensors and back: weights, buffers and optimizer state, by their names in the whole network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch

from hpcsplit.errors import CheckpointError
from hpcsplit.files.hdf5 import Header
from hpcsplit.split.stage import Stage

Tensors = dict[str, torch.Tensor]


def stage_tensors(stage: Stage) -> Tensors:
    """Everything that a stage has learned: "weights/<name>", "optim/<name>/<state>" and the method's "carry/<name>"."""
    tensors = {f"weights/{name}": t.cpu() for name, t in stage.state().items()}
    for name, parameter in stage.blocks.named_parameters():
        for key, value in _optimizer_state(stage, parameter).items():
            if value is not None:
                tensors[f"optim/{name}/{key}"] = torch.as_tensor(value).detach().cpu()
    return tensors | {f"carry/{name}": t.detach().cpu() for name, t in stage.carry.items()}


def load_stage(stage: Stage, tensors: Mapping[str, torch.Tensor]) -> None:
    """The reverse of `stage_tensors`.

    Raises:
        CheckpointError: a weight is absent or has another shape.
    """
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    own = stage.state()
    if surplus := sorted(weights.keys() - own.keys()):
        raise CheckpointError(f"the checkpoint has {surplus[0]}, this network has not; it belongs to another network")
    for name, t in own.items():
        if name not in weights:
            raise CheckpointError(f"the checkpoint has no {name}; it belongs to another network")
        if weights[name].shape != t.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(weights[name].shape)} in the checkpoint and {tuple(t.shape)} in this network"
            )
        t.data.copy_(weights[name])
    carried = {name.removeprefix("carry/"): t for name, t in tensors.items() if name.startswith("carry/")}
    stage.carry = {name: t.to(stage.device) for name, t in carried.items()}
    if stage.optimizer is None:
        return
    stage.optimizer.state.clear()
    for name, parameter in stage.blocks.named_parameters():
        prefix = f"optim/{name}/"
        state = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        if state:
            stage.optimizer.state[parameter] = {key: _like(parameter, t) for key, t in state.items()}


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


def _like(parameter: torch.nn.Parameter, saved: torch.Tensor) -> torch.Tensor:
    """A state tensor on the parameter's device and in its memory format; step counters stay scalars on the CPU."""
    if saved.shape != parameter.shape:
        return saved.clone()
    return torch.empty_like(parameter, dtype=saved.dtype).copy_(saved)


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """(name, SHA-256 of the bytes) of every tensor, in their order."""
    digests = []
    for name, t in tensors.items():
        raw = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        digests.append((name, hashlib.sha256(raw).hexdigest()))
    return digests


def weights_sha256(stages: Iterable[Iterable[tuple[str, str]]]) -> str:
    """One hash of the whole network from its stages' digests, independent of where it is cut."""
    whole = hashlib.sha256()
    for digests in stages:
        for name, digest in digests:
            whole.update(f"{name} {digest}\n".encode())
    return whole.hexdigest()
