"""Beginning with what another run has learned: the tensors that two networks have in common, by name and shape.

Names are those of the whole network, so it does not matter where either of them is cut.  A checkpoint is only read, as
files of tensors: nothing of the other run is built or run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from hpcsplit.checkpoint.manifest import parsed
from hpcsplit.checkpoint.state import below, load_optimizer, stage_files
from hpcsplit.errors import CheckpointError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.hdf5 import Header, Stored
from hpcsplit.files.nofollow import read_bytes
from hpcsplit.nets.statedict import entry, is_extra, tensors_of, values_of
from hpcsplit.stage.stage import Stage

_NAMED = 6  # tensors that a sentence names


@dataclass(frozen=True)
class Origin:
    """The checkpoint of another run that a run begins with; `sha256` is that of its list of checksums."""

    run: str  # the run directory that was named
    folder: str
    sha256: str
    optimizer: bool = False  # its optimizer's state, too

    @classmethod
    def of(cls, run: Path, folder: Path, *, optimizer: bool) -> Origin:
        """A complete checkpoint of a run.  CheckpointError where it cannot be read."""
        return cls(os.path.realpath(run), os.path.realpath(folder), _digest(folder), optimizer)

    @classmethod
    def from_json(cls, value: Any) -> Origin | None:
        """Of `to_json`, or of its parsed value; None where it is neither."""
        try:
            return msgspec.convert(parsed(value) if isinstance(value, str) else value, cls)
        except msgspec.ValidationError:
            return None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def checkpoint(self) -> Path:
        return Path(self.folder)

    def still_there(self) -> bool:
        """Whether the checkpoint is there as it was."""
        try:
            return _digest(self.checkpoint) == self.sha256
        except CheckpointError:
            return False

    def check(self) -> None:
        """Raise CheckpointError where it is not."""
        if not self.still_there():
            raise CheckpointError(
                f"checkpoint {self.folder}, which this run begins with, is gone or has changed; restore it, or choose "
                "another --run-dir and another checkpoint"
            )


def _digest(folder: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(folder / ckpt.SUMS)).hexdigest()
    except OSError as error:
        raise ckpt.damaged(folder, f"{ckpt.SUMS} cannot be read ({error.strerror})") from None


# ------------------------------------------------------------------------------------------------ what is in common


def taken(there: Mapping[str, Header], own: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of a network's tensors (nets/statedict.py) that a checkpoint has in the same shape and of the same
    kind of numbers; extra state is taken up as it is."""
    entries = {entry(name) for name in there}
    return [
        name
        for name, t in own.items()
        if (is_extra(name) and entry(name) in entries) or (name in there and _fits(there[name], t))
    ]


def _fits(there: Header, here: torch.Tensor) -> bool:
    same_kind = there.dtype.is_floating_point and here.dtype.is_floating_point
    return there.shape == tuple(here.shape) and (there.dtype == here.dtype or same_kind)


def compare(origin: Origin, net: nn.Module) -> str:
    """What a network, which may be on "meta", takes over and what it does not, as a sentence.  CheckpointError where
    that is no weight at all, or the checkpoint cannot be read."""
    there = below("weights/", {key: h for file in _opened(origin) for key, h in file.headers.items()})
    own = tensors_of(net)
    names = taken(there, own)
    if not {name for name, _ in net.named_parameters()} & set(names):
        raise CheckpointError(
            f"checkpoint {origin.folder} has no weight in common with this network, by name and shape: it has "
            f"{_first(there)}, this network {_first(own)}; take a run of such a network, or leave --continue-from out"
        )
    left = [f"{name} is {_shape(there[name])} there, {_shape(t)} here" for name, t in own.items() if name in there]
    left = [words for words in left if words.partition(" ")[0] not in names]
    left += [f"{name} is absent there" for name in own if entry(name) not in map(entry, there)]
    sentence = f"begins with {len(names)} of {len(own)} tensors of {origin.folder}"
    sentence += " and its optimizer's state" if origin.optimizer else ""
    if left:
        sentence += f"; at their initial values stay those where {_listed(left)}"
    if surplus := [name for name in there if entry(name) not in map(entry, own)]:
        sentence += f"; {len(surplus)} of its tensors have no place in this network: {_listed(surplus)}"
    return sentence


def _first(tensors: Mapping[str, Header | torch.Tensor]) -> str:
    return next((f"{name} {_shape(t)}" for name, t in tensors.items()), "none")


def _shape(t: Header | torch.Tensor) -> str:
    return "x".join(map(str, t.shape)) or "a number"


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more


def _opened(origin: Origin) -> list[Stored]:
    """Its files, whose checksums have been compared."""
    origin.check()
    folder = origin.checkpoint
    return [Stored(ckpt.image(folder, file), folder / file) for file in stage_files(folder)]


# ------------------------------------------------------------------------------------------------ taking it over


def inherit(stage: Stage, origin: Origin) -> None:
    """Take over what a stage has in common with the checkpoint: weights, buffers and extra state, and with
    `origin.optimizer` the optimizer's state of these weights.  CheckpointError where it cannot be read."""
    own, parameters, tensors = stage.state(), dict(stage.blocks.named_parameters()), {}
    for file in _opened(origin):
        wanted = set(taken(below("weights/", file.headers), own))
        for key, header in file.headers.items():
            kind, _, name = key.partition("/")
            weight = name.rpartition("/")[0]
            fits = (
                kind == "optim" and weight in wanted and math.prod(header.shape) <= max(1, parameters[weight].numel())
            )
            if (kind == "weights" and (name in wanted or _is_part(name, own))) or kind == "buffers" or fits:
                tensors[key] = file.tensor(key)
    weights = below("weights/", tensors)
    for name, t in own.items():
        if not is_extra(name) and name in weights:
            t.data.copy_(weights[name])
    for name, value in values_of(weights).items():
        if is_extra(name):
            _set_extra(stage.blocks, name, value, origin)
    modules = dict(stage.blocks.named_modules())
    for name, t in below("buffers/", tensors).items():
        owner, _, leaf = name.rpartition(".")
        buffers = modules[owner]._buffers if owner in modules else {}
        before = buffers.get(leaf)
        if leaf in buffers and (before is None or (before.shape, before.dtype) == (t.shape, t.dtype)):
            buffers[leaf] = t.to(stage.device)
    if origin.optimizer:
        load_optimizer(stage, tensors)


def _is_part(name: str, own: Mapping[str, torch.Tensor]) -> bool:
    return is_extra(name) and entry(name) in map(entry, own)


def _set_extra(blocks: nn.Module, name: str, value: Any, origin: Origin) -> None:
    try:
        blocks.get_submodule(name.rpartition(".")[0]).set_extra_state(value)
    except Exception as error:  # user code runs here
        raise CheckpointError(
            f"{name} of checkpoint {origin.folder} cannot be taken over ({type(error).__name__}: {error}); correct "
            "set_extra_state, or take another checkpoint"
        ) from error
