"""A checkpoint as one network: the files of all its stages, however many, put together by the names of the tensors.

A stage's file keeps everything by its name in the whole network ("weights/<name>", "optim/<name>/<state>",
"carry/<name>"), so nothing here depends on the number of stages or on where they were cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from hpcsplit.checkpoint.state import Tensors, below, check_weights, tensor_digests, weights_sha256
from hpcsplit.errors import CheckpointError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.hdf5 import Header, Stored
from hpcsplit.nets.statedict import entry, is_extra

WEIGHTS, BUFFERS = "weights/", "buffers/"


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


def read_weights(folder: Path, like: Mapping[str, torch.Tensor]) -> Whole:
    """The weights of the whole network; each is read when the checksum of its file, its shape and type are right.

    Args:
        like: the network's own tensors (nets/statedict.py), whose values are not looked at: they may be on "meta".

    Raises:
        CheckpointError: a file is absent, changed or no HDF5 file, two of them have the same tensor, or the checkpoint
            is that of another network.
    """
    result: dict[str, tuple[Header, Stored]] = {}
    for file in stage_files(folder):
        stored = Stored(ckpt.image(folder, file), folder / file)
        mine = {key: (h, stored) for key, h in stored.headers.items() if key.startswith((WEIGHTS, BUFFERS))}
        if twice := sorted(mine.keys() & result.keys()):
            raise ckpt.damaged(folder, f"{twice[0].partition('/')[2]} is in {file} and in a file before it")
        result |= mine
    try:
        check_weights(below(WEIGHTS, {key: header for key, (header, _) in result.items()}), like)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    tensors = {key: stored.tensor(key) for key, (_, stored) in result.items()}
    weights = below(WEIGHTS, tensors)
    order = dict.fromkeys(map(entry, like))
    parts = {name: [part for part in weights if entry(part) == name] for name in order if is_extra(name)}
    return Whole(
        {part: weights[part] for name in order for part in sorted(parts.get(name, [name]), key=_number)},
        below(BUFFERS, tensors),
    )


def _number(part: str) -> int:
    """Where a part of an extra state stands: the text first, then its tensors."""
    last = part.rpartition(".")[2]
    return int(last) if last.isdigit() else -1


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """The hash that records.jsonl calls weights_sha256, of a whole network's tensors in their own order."""
    return weights_sha256([tensor_digests(weights)])
