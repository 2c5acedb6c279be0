"""A checkpoint as one network: the files of all its stages, however many, put together by the names of the tensors.

A stage's file keeps everything by its name in the whole network ("weights/<name>", "optim/<name>/<state>",
"carry/<name>"), so nothing here depends on the number of stages or on where they were cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from hpcsplit.checkpoint import folder as ckpt
from hpcsplit.checkpoint.state import Tensors, tensor_digests, weights_sha256
from hpcsplit.errors import CheckpointError
from hpcsplit.files.hdf5 import Stored

WEIGHTS = "weights/"


def stage_files(folder: Path) -> list[str]:
    """The names of the files with weights that SHA256SUMS lists, in order.  CheckpointError when there are none."""
    names = sorted(name for name in ckpt.listed(folder) if name.startswith("stage-"))
    if not names:
        raise ckpt.damaged(folder, f"{ckpt.SUMS} lists no file of a stage")
    return names


def read_weights(folder: Path, like: Mapping[str, torch.Tensor]) -> Tensors:
    """The weights and buffers of the whole network, in the order of `like`, on the CPU.

    A tensor is read when the checksum of its file, its shape and its type are right.

    Args:
        like: the network's own state dict; only names, shapes and types are looked at, so it may be on "meta".

    Raises:
        CheckpointError: a file is absent, changed or no HDF5 file, two of them have the same tensor, or the checkpoint
            is that of another network.
    """
    weights: Tensors = {}
    for file in stage_files(folder):
        stored = Stored(ckpt.image(folder, file), folder / file)
        headers = {k.removeprefix(WEIGHTS): header for k, header in stored.headers.items() if k.startswith(WEIGHTS)}
        if twice := sorted(headers.keys() & weights.keys()):
            raise ckpt.damaged(folder, f"{twice[0]} is in {file} and in a file before it")
        if surplus := sorted(headers.keys() - like.keys()):
            raise CheckpointError(
                f"checkpoint {folder} has {surplus[0]}, this network has not; give the run's own --config"
            )
        for name, header in headers.items():
            there, here = (header.shape, header.dtype), (tuple(like[name].shape), like[name].dtype)
            if here != there:
                raise CheckpointError(
                    f"{name} has shape {there[0]} ({there[1]}) in checkpoint {folder} and {here[0]} ({here[1]}) in "
                    "this network; give the run's own --config"
                )
        weights |= {name: stored.tensor(WEIGHTS + name) for name in headers}
    if absent := [name for name in like if name not in weights]:
        raise CheckpointError(f"checkpoint {folder} has no {absent[0]}, this network has; give the run's own --config")
    return {name: weights[name] for name in like}


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """The hash that records.jsonl calls weights_sha256, of a whole network's state dict in its own order."""
    return weights_sha256([tensor_digests(weights)])
