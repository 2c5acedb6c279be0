"""Weights that a network begins with: model.weights = "FILE", a state dict of torch.save or a .safetensors file.

Its names are those of the package or module that the network was made of (chain.py), such as `layer1.0.conv1.weight` of
torchvision's published files, or those of this program's own export, `layer1_0.conv1.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hpcsplit.errors import ConfigError
from hpcsplit.files.paths import expanded
from hpcsplit.host.printable import printable


def begin_with(file: str, net: nn.Module, blocks: nn.Sequential, classes: int) -> None:
    """Give `net`, and so `blocks`, which are made of it, the weights of a file.

    The last layer keeps its own where the file's has another number of classes; `random_head` tells.
    Raises ConfigError where the file cannot be read, or anything else in it does not fit.
    """
    saved = _read(expanded(file, "model.weights"), file)
    names = [module.state_dict() for module in (net, blocks)]
    wanted = max(names, key=lambda state: len(state.keys() & saved.keys()))
    head = _other_head(wanted, saved, classes)
    for name in sorted(wanted.keys() | saved.keys()):
        if wrong := _wrong(name, wanted, saved) if name not in head else "":
            raise ConfigError(f'model.weights = "{file}" is not of this network: {wrong}; take a file of the same one')
    for name in wanted.keys() & saved.keys() - head:
        wanted[name].copy_(saved[name])


def random_head(file: str, net: nn.Sequential) -> str:
    """What to say of weights that a file has left as they were; or ""."""
    saved, state = _read(expanded(file, "model.weights"), file), net.state_dict()
    last = list(state)[-1]
    rows = [
        t.shape[0] for name, t in saved.items() if f".{last}".replace(".", "_").endswith(f"_{name.replace('.', '_')}")
    ]
    if not rows or rows[0] == state[last].shape[0]:
        return ""
    return (
        f'note: model.weights = "{file}" has {rows[0]} classes, so the last layer, of {len(state[last])}, begins random'
    )


def _other_head(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor], classes: int) -> set[str]:
    """The parameters of the last layer, where the file's has another number of classes."""
    layer = list(wanted)[-1].rpartition(".")[0]
    names = {name for name in wanted.keys() & saved.keys() if name.rpartition(".")[0] == layer}
    pairs = [(wanted[name].shape, saved[name].shape) for name in names]
    other = all(ours[:1] == (classes,) != theirs[:1] and ours[1:] == theirs[1:] for ours, theirs in pairs)
    return names if other else set()


def _wrong(name: str, wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    if name not in saved:
        counter = name.endswith("num_batches_tracked")  # which old files do not have
        return "" if counter else f"it has no {name}"
    if name not in wanted:
        return f"it has {printable(name)}, which the network has not"
    ours, theirs = tuple(wanted[name].shape), tuple(saved[name].shape)
    return f"{name} has the shape {theirs} there and {ours} here" if ours != theirs else ""


def _read(path: Path, file: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(
            f'model.weights = "{file}" cannot be read: {error.strerror or error}; correct the path'
        ) from None
    except Exception:  # of whatever the file is
        raise ConfigError(
            f'model.weights = "{file}" is no .safetensors file and no state dict of torch.save; save '
            "net.state_dict(), not the network"
        ) from None
    if not isinstance(saved, dict) or not all(isinstance(t, Tensor) for t in saved.values()) or not saved:
        raise ConfigError(f'model.weights = "{file}" is no state dict, names with tensors; save net.state_dict()')
    return saved
