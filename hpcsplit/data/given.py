"""Samples that a user gives by files: images, folders of them, and arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hpcsplit.data.images import SUFFIXES, read_image
from hpcsplit.data.inputs import Inputs
from hpcsplit.errors import DataError

ARRAYS = (".npy", ".npz")
_NAMES = ("x", "images", "data")  # of the array that is meant, where a file has several
Sample = tuple[str, np.ndarray]


def samples_of(paths: Sequence[Path], inputs: Inputs, skip: Callable[[DataError], None] | None) -> Iterator[Sample]:
    """The name and the values of each sample: uint8 (C, H, W) of an image, of an array (*shape), or (*taken) where
    `inputs.pool` makes that another one.

    Args:
        skip: is told of a file that cannot be used, in place of an error.
    Raises:
        DataError: naming the file: it is absent, broken, or has samples of another shape.
    """
    for path in [file for given in paths for file in _files(given)]:
        try:
            yield from _arrays(path, inputs) if path.suffix.lower() in ARRAYS else _image(path, inputs)
        except DataError as error:
            if skip is None:
                raise
            skip(error)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"{path} is not there; give an image, a folder of images, or an array (.npy, .npz)")
    if not path.is_dir():
        return [path]
    files = [file for file in path.rglob("*") if file.suffix.lower() in (*SUFFIXES, *ARRAYS) and file.is_file()]
    if not files:
        raise DataError(f"{path} has no file that ends in {', '.join((*SUFFIXES, *ARRAYS))}; give a folder with some")
    return sorted(files)


def _image(path: Path, inputs: Inputs) -> Iterator[Sample]:
    if len(inputs.shape) != 3:
        raise DataError(
            f"{path}: the network takes samples of shape {inputs.shape}, which no image has; give them as .npy or .npz"
        )
    yield str(path), read_image(path, inputs.shape)


def _arrays(path: Path, inputs: Inputs) -> Iterator[Sample]:
    values, shapes = _read(path), {inputs.shape, inputs.taken}
    if values.ndim == 3 and (1, *values.shape[1:]) in shapes:  # grey images without a channel
        values = values[:, None]
    if values.shape[1:] not in shapes:
        wanted = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in sorted(shapes, reverse=True))
        raise DataError(f"{path} has shape {values.shape}, the network takes {wanted}; reshape it")
    whole = np.issubdtype(values.dtype, np.integer)
    if not (whole or np.issubdtype(values.dtype, np.floating)):
        raise DataError(f"{path} has values of type {values.dtype}; give numbers")
    if whole and inputs.mean and values.dtype != np.uint8:
        raise DataError(
            f"{path} has whole numbers of type {values.dtype}; give pixels as uint8 from 0 to 255, or as floats on the "
            "scale of the training set (pixels from 0 to 1)"
        )
    kind = np.uint8 if values.dtype == np.uint8 else np.int64 if whole else np.float32
    for number, row in enumerate(values):
        yield f"{path}[{number}]", row.astype(kind)


def _read(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        names = [name for name in _NAMES if name in found] if len(found.files) > 1 else found.files
        if not names:
            raise DataError(
                f"{path} has {len(found.files)} arrays ({', '.join(found.files)}), none of them called "
                f"{' or '.join(_NAMES)}; name the one that is meant so"
            )
        array: np.ndarray = found[names[0]]
        return array
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an array ({reason}); replace or remove it") from None
