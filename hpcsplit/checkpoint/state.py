"""A stage as named tensors and back: weights, buffers and optimizer state, by their names in the whole network.

So nothing in a stage's file depends on the number of stages or on where they were cut, and the files of all stages,
however many, make one network again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from hpcsplit.errors import CheckpointError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.hdf5 import Header, Stored
from hpcsplit.nets.statedict import entry, is_extra, tensors_of, values_of
from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Stage

Tensors = dict[str, torch.Tensor]
Item = TypeVar("Item")
_OTHER = "it belongs to another network: change the code back, or give the run's own configuration"


def stage_tensors(stage: Stage) -> Tensors:
    """Everything that a stage has learned: "weights/<name>", their average "ema/<name>", "optim/<name>/<state>", the
    method's "carry/<name>", and "buffers/<name>" for those with persistent=False that training has changed."""
    tensors = {f"weights/{name}": t.cpu() for name, t in stage.state().items()}
    averages = stage.average.weights if stage.average else {}
    tensors |= {f"ema/{name}": t.cpu() for name, t in averages.items()}
    states = stage.optimizer.state if stage.optimizer else {}
    names = {id(parameter): name for name, parameter in stage.blocks.named_parameters()}
    for name, parameter in stage.blocks.named_parameters():
        for key, value in states.get(parameter, {}).items():
            if value is not None:
                tensors[f"optim/{name}/{key}{_kind(value)}"] = _as_tensor(value)
    for group in stage.optimizer.param_groups if stage.optimizer and _users(stage.optimizer) else ():
        numbers = {key: value for key, value in group.items() if isinstance(value, int | float) and key != "lr"}
        for p in group["params"]:
            tensors |= {
                f"optim/{names[id(p)]}/@{key}{_kind(value)}": _as_tensor(value) for key, value in numbers.items()
            }
    tensors |= {f"buffers/{name}": t.cpu() for name, t in stage.besides.buffers().items()}
    return tensors | {f"carry/{name}": t.detach().cpu() for name, t in stage.carry.items()}


def load_stage(stage: Stage, tensors: Mapping[str, torch.Tensor]) -> None:
    """The reverse of `stage_tensors`.  Raises as `load_weights`."""
    load_weights(stage.blocks, below("weights/", tensors), below("buffers/", tensors))
    carried = below("carry/", tensors)
    stage.carry = Carry({name: t.to(stage.device) if t.is_floating_point() else t for name, t in carried.items()})
    if stage.average:
        stage.average.load(below("ema/", tensors))
    load_optimizer(stage, tensors)


def load_optimizer(stage: Stage, tensors: Mapping[str, torch.Tensor]) -> None:
    """Take up the optimizer's state of those weights that have one, and forget that of the others."""
    if stage.optimizer is None:
        return
    stage.optimizer.state.clear()
    names = {id(parameter): name for name, parameter in stage.blocks.named_parameters()}
    for group in stage.optimizer.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            for saved, t in below(f"optim/{names[id(parameter)]}/", tensors).items():
                key, _, kind = saved.partition(":")
                value = (
                    _NUMBERS[kind](t) if kind in _NUMBERS else _placed(saved, t, parameter, step_on_device=on_device)
                )
                if key.startswith("@"):
                    group[key[1:]] = value
                else:
                    stage.optimizer.state[parameter][key] = value


# What is no tensor has the name of its kind behind its own, and what belongs to a whole group stands beside each of its
# weights, as "@<name>".  Only optimizers of the user's have such.
_NUMBERS: dict[str, type[bool] | type[int] | type[float]] = {"bool": bool, "int": int, "float": float}


def _kind(value: Any) -> str:
    return next((f":{name}" for name, kind in _NUMBERS.items() if isinstance(value, kind)), "")


def _as_tensor(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None).detach().cpu()


def _users(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer is none of torch's or this program's."""
    return type(optimizer).__module__.partition(".")[0] not in ("torch", "hpcsplit")


def below(prefix: str, tensors: Mapping[str, Item]) -> dict[str, Item]:
    """The tensors whose names begin so, by the rest of the name."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def load_weights(blocks: nn.Module, weights: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]) -> None:
    """Take up weights, buffers and extra state, and those buffers that are in no state dict.  CheckpointError where a
    weight is absent or has another shape or type."""
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
        if kind in ("weights", "ema") and name in own and header.shape != own[name].shape:
            raise CheckpointError(
                f"{name} has shape {header.shape} in the checkpoint and {tuple(own[name].shape)} in this network"
            )
        own_code = stage.optimizer is not None and _users(stage.optimizer)  # which may keep what it likes
        if kind == "optim" and not own_code and math.prod(header.shape) > max(1, sizes.get(name.rpartition("/")[0], 0)):
            raise CheckpointError(f"{key} has shape {header.shape} in the checkpoint, more than its weight has")


def _placed(key: str, saved: torch.Tensor, parameter: nn.Parameter, *, step_on_device: bool) -> torch.Tensor:
    """A state tensor where the optimizer has left it: in the parameter's place and memory format, single numbers on the
    CPU, but the step counter beside the parameter where a kernel on the device counts (as torch's load_state_dict)."""
    if key == "step":
        return saved.to(parameter.device, copy=True) if step_on_device else saved.clone()
    if saved.shape != parameter.shape:
        return saved.to(parameter.device if saved.dim() else saved.device, copy=True)
    return torch.empty_like(parameter, dtype=saved.dtype).copy_(saved)


def tensor_digests(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """(name, SHA-256 of the bytes) of every tensor, in their order."""
    digests = []
    for name, t in tensors.items():
        plain = t.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digests.append((name, hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()))
    return digests


def weights_sha256(stages: Iterable[Iterable[tuple[str, str]]]) -> str:
    """One hash of the whole network from its stages' digests, independent of where it is cut."""
    lines = (f"{name} {digest}\n" for digests in stages for name, digest in digests)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ a whole network


def stage_files(folder: Path) -> list[str]:
    """The names of the files with weights that SHA256SUMS lists, in order.  CheckpointError when there are none."""
    names = sorted(name for name in ckpt.listed(folder) if name.startswith("stage-"))
    if not names:
        raise ckpt.damaged(folder, f"{ckpt.SUMS} lists no file of a stage")
    return names


class Whole(NamedTuple):
    """Weights, buffers and extra state of a whole network in its own order, and the changed buffers that are in no
    state dict; on the CPU, by name."""

    weights: Tensors
    buffers: Tensors


def read_weights(folder: Path, like: Mapping[str, torch.Tensor], *, average: bool = False) -> Whole:
    """The weights of the whole network, or with `average` their moving average in place of those that have one; each is
    read when the checksum of its file, its shape and type are right: those of `like`, the network's own tensors
    (nets/statedict.py), which may be on "meta".

    Raises:
        CheckpointError: a file is absent, changed or no HDF5 file, two of them have the same tensor, or the checkpoint
            is that of another network.
    """
    result: dict[str, tuple[Header, Stored]] = {}
    for file in stage_files(folder):
        stored = Stored(ckpt.image(folder, file), folder / file)
        kinds = ("weights/", "buffers/", "ema/") if average else ("weights/", "buffers/")
        mine = {key: (h, stored) for key, h in stored.headers.items() if key.startswith(kinds)}
        if twice := sorted(mine.keys() & result.keys()):
            raise ckpt.damaged(folder, f"{twice[0].partition('/')[2]} is in {file} and in a file before it")
        result |= mine
    if average and not below("ema/", result):
        raise CheckpointError(
            f"{folder} has no average of the weights, which a run with optim.ema keeps; leave --ema out"
        )
    headers = {key: header for key, (header, _) in result.items()}
    try:
        check_weights(below("weights/", headers) | below("ema/", headers), like)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    tensors = {key: stored.tensor(key) for key, (_, stored) in result.items()}
    weights = below("weights/", tensors) | below("ema/", tensors)
    order = dict.fromkeys(map(entry, like))
    parts = {name: [part for part in weights if entry(part) == name] for name in order if is_extra(name)}
    return Whole(
        {part: weights[part] for name in order for part in sorted(parts.get(name, [name]), key=_number)},
        below("buffers/", tensors),
    )


def _number(part: str) -> int:
    """Where a part of an extra state stands: the text first, then its tensors."""
    last = part.rpartition(".")[2]
    return int(last) if last.isdigit() else -1


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """The hash that records.jsonl calls weights_sha256, of a whole network's tensors in their own order."""
    return weights_sha256([tensor_digests(weights)])
