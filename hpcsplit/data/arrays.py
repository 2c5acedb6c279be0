"""Arrays in files: data.name = "arrays", with data.root a file or a folder.

    FILE.npz           x_train, y_train, x_test, y_test; or x, y where data.validation says how many are held out
    FILE.h5, .hdf5     data sets of these names, read when they are needed where they lie in one piece
    FOLDER             x_train.npy ... or x.npy, y.npy, read when they are needed

x are bytes of images (N, C, H, W), (N, H, W) or flat (N, values); numbers of floating point (N, …); or tokens, whole
numbers (N, …).  y are classes (N,), tokens as many as x, or numbers of floating point (N, …).
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcsplit.data.catalog import Spec
from hpcsplit.data.dataset import DataOptions, InMemory, Opened, Part, as_sample, check_classes, split_order
from hpcsplit.errors import DataError
from hpcsplit.files.hdf5 import user_arrays
from hpcsplit.files.paths import expanded

_WHOLE = ("x_train", "y_train", "x_test", "y_test")
_ONE = ("x", "y")


def open_arrays(asked: DataOptions) -> Opened:
    """DataError where they are absent, or do not belong together."""
    if not asked.root:
        raise DataError('data.name = "arrays" needs data.root: a .npz or .h5 file, or a folder with x.npy and y.npy')
    path = expanded(asked.root, "data.root =")
    try:
        arrays = _read(path)
    except MemoryError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        said = (error.strerror if isinstance(error, OSError) else "") or " ".join(str(error).split())
        raise DataError(f"data.root = {path} cannot be read as arrays: {said or type(error).__name__}") from None
    names = next((some for some in (_WHOLE, _WHOLE[:2], _ONE) if set(some) <= set(arrays)), ())
    if not names:
        raise DataError(
            f"data.root = {path} has {', '.join(arrays) or 'no arrays of these names'}; it needs {', '.join(_WHOLE)}, "
            "or x and y"
        )
    return opened_arrays(asked, [arrays[name] for name in names], f"{path}")


def _read(path: Path) -> dict[str, np.ndarray]:
    names = (*_WHOLE, *_ONE)
    if path.is_dir():
        there = [name for name in names if (path / f"{name}.npy").exists()]
        return {name: np.load(path / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in there}
    if path.suffix.lower() in (".h5", ".hdf5"):
        return user_arrays(path, names)
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is one array; put x.npy and y.npy into a folder, and give that")
        return {name: file[name] for name in names if name in file.files}


def opened_arrays(asked: DataOptions, arrays: Sequence[Any], where: str) -> Opened:
    """A set of arrays or tensors x and y of the training samples and, where there are four, of the test samples."""
    parts = [_part(arrays[k], arrays[k + 1], where) for k in range(0, len(arrays), 2)]
    train, test = parts[0], parts[1] if len(parts) > 1 else None
    if test is None and not train.mapped:
        train = train.in_order(split_order(len(train)))
    return described(asked, train, test, where)


def described(
    asked: DataOptions, train: Part, test: Part | None, where: str, classes: int = 0, names: Sequence[str] = ()
) -> Opened:
    """What a part's first samples say of a set; `classes` or data.classes say how many there are, else the labels.

    DataError where the test samples are of another kind than the training samples, or a label is no class.
    """
    first, target = train.inputs(np.arange(1))[0], train.targets(np.arange(1))[0]
    classes = asked.classes or classes
    tokens = first.dtype == torch.int64
    if target.dtype == torch.int64 and not classes:
        both = tokens and target.shape == first.shape  # targets are tokens, too
        largest = [_largest(part, inputs=both) for part in (train, test) if part is not None]
        classes = max(largest) + 1
    spec = Spec(
        asked.name,
        len(train),
        len(test) if test else 0,
        tuple(first.shape),
        classes if target.dtype == torch.int64 else 0,
        flip=False,
        kind="tokens" if tokens else "images" if first.dtype == torch.uint8 else "numbers",
        target_shape=tuple(target.shape),
        views=not isinstance(train, InMemory),
        padding=0,
        in_memory=isinstance(train, InMemory) and not train.mapped,
        names=tuple(names) if len(names) == classes else (),
    )
    for which, part in (("training", train), ("test", test)):
        if part is None:
            continue
        shapes = [tuple(t.shape[1:]) for t in (part.inputs(np.arange(1)), part.targets(np.arange(1)))]
        if shapes != [spec.shape, spec.target_shape]:
            raise DataError(
                f"the test samples of {where} have shapes {shapes[0]} and {shapes[1]}, the training samples "
                f"{spec.shape} and {spec.target_shape}; make them alike"
            )
        if spec.classes and isinstance(part, InMemory):
            check_classes(
                spec,
                which,
                part.labels,
                "correct them, raise data.classes, or give numbers that are no classes as floating point",
            )
    normalised = {"images": ("images", "all"), "numbers": ("all",), "tokens": ()}[spec.kind]
    kind = {"images": "pixels", "numbers": "numbers"}.get(spec.kind, "")
    return Opened(spec, train, test, normalise=kind if asked.normalise in normalised else "")


def _largest(part: Part, *, inputs: bool) -> int:
    if not isinstance(part, InMemory):
        return max(int(part.targets(np.arange(k, min(k + 1024, len(part)))).max()) for k in range(0, len(part), 1024))
    return max(int(t.max()) for t in ((part.labels, part.images) if inputs else (part.labels,)))


def _part(x: Any, y: Any, where: str) -> InMemory:
    for name, values in (("x", x), ("y", y)):
        if not isinstance(values, Tensor) and np.asarray(values).dtype.kind not in "biuf":
            raise DataError(f"{name} of {where} are {np.asarray(values).dtype}, not numbers; give numbers")
    if len(x) != len(y) or not len(x):
        raise DataError(f"{where} has {len(x)} x and {len(y)} y; give as many of both, at least 1")
    mapped = isinstance(x, np.memmap)
    targets = as_sample(torch.as_tensor(np.asarray(y)))
    inputs = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x))
    if inputs.dtype == torch.uint8 and targets.shape == inputs.shape and targets.dtype == torch.uint8:
        inputs = inputs.long()  # tokens
    if targets.dtype == torch.uint8:
        targets = targets.long()
    if targets.dim() > 1 and targets.shape[1:] == (1,) and targets.dtype == torch.int64:
        targets = targets[:, 0]
    if not mapped:
        inputs = as_sample(inputs)
    if inputs.dtype == torch.uint8 and inputs.dim() == 3:
        inputs = inputs[:, None]  # (N, H, W): grey
    return InMemory(inputs.contiguous(), targets.contiguous(), mapped)
