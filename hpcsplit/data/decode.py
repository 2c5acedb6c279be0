"""The published files of data sets as arrays, from bytes that were read once and whose sum is known to be right.

No file is trusted for its place: pickles are taken apart by an unpickler that knows arrays of bytes and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle  # nosec B403
import stat
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 1 << 30  # of a file; the largest one published, svhn's, has 182 MB


def content(path: Path, md5: str | None = None) -> bytes:
    """The bytes of a regular file, read once; `md5` is what is published of it, 32 hexadecimal digits, if anything.

    OSError where it cannot be read; ValueError for no regular file, one too large, or another than was published.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_size > MOST_BYTES:
            raise ValueError(f"{path.name} is no file of at most {MOST_BYTES} bytes")
        result = file.read(MOST_BYTES)
    return published(result, path.name, md5)


def published(result: bytes, name: str, md5: str | None) -> bytes:
    """`result` itself, the content of the file `name`; ValueError where `md5` (see `content`) is not that of it."""
    if md5 and hashlib.md5(result, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{name} does not have the checksum of the published file")
    return result


def idx(result: bytes, dimensions: int) -> np.ndarray:
    """Unsigned bytes of an idx file: magic number 0x0800 + dimensions, sizes as big-endian int32, the bytes."""
    start = 4 * (1 + dimensions)
    magic, *sizes = np.frombuffer(result[:start].ljust(start, b"\0"), ">i4").tolist()
    if magic != 0x0800 + dimensions:
        raise ValueError(f"no idx file of {dimensions} dimensions")
    if min(sizes) < 0 or math.prod(sizes) != len(result) - start:
        raise ValueError(f"an idx file of {' x '.join(map(str, sizes))} bytes has {len(result) - start}")
    return np.frombuffer(result, np.uint8, offset=start).reshape(sizes)


def cifar(result: bytes) -> tuple[np.ndarray, list[int]]:
    """Images uint8 (N, 3, 32, 32) and labels of one file of CIFAR-10 or CIFAR-100 for Python."""
    entry = _PlainUnpickler(io.BytesIO(result), encoding="latin1").load()
    images, labels = entry["data"], entry.get("labels", entry.get("fine_labels"))
    if isinstance(images, _Array):
        images = images.values
    if not isinstance(images, np.ndarray) or not isinstance(labels, list) or any(type(k) is not int for k in labels):
        raise ValueError("no images and labels in it")
    return images.reshape(-1, 3, 32, 32), labels


def svhn(result: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels 0 .. 9 of one of SVHN's files, which call the digit 0 "10"."""
    from scipy.io import loadmat

    arrays = loadmat(io.BytesIO(result), variable_names=["X", "y"])
    labels = arrays["y"].reshape(-1)
    return arrays["X"].transpose(3, 2, 0, 1), np.where(labels == 10, 0, labels)


def npz(result: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `images` and `labels` of an npz file; ValueError for one that is a pickle."""
    with np.load(io.BytesIO(result), allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


# ------------------------------------------------------------------------------------------------ pickles


class _Type:
    """In the place of numpy.dtype: unsigned bytes, whose state has nothing to add."""

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", "|u1"):
            raise ValueError(f"it has an array of {name!r}, only unsigned bytes are read")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """In the place of numpy.ndarray: bytes in C order with a shape."""

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, _, fortran, raw = state
        self.values = _array(raw, None, shape, "F" if fortran else "C")


def _array(raw: Any, _: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(raw, str):  # bytes of Python 2
        raw = raw.encode("latin1")
    if order != "C" or not isinstance(raw, bytes | bytearray | pickle.PickleBuffer) or not isinstance(shape, tuple):
        raise ValueError("it has an array in another form than was published")
    values = np.frombuffer(memoryview(raw), np.uint8)
    if any(type(length) is not int or length < 0 for length in shape) or math.prod(shape) != len(values):
        raise ValueError(f"it has an array of {len(values)} bytes that is not of its shape")
    return values.reshape(shape)


def _bytes(text: Any, encoding: Any) -> bytes:
    """In the place of _codecs.encode, by which Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("it has bytes in another form than was published")
    return text.encode("latin1")


_KNOWN = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type, ("_codecs", "encode"): _bytes}
_KNOWN |= {(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")}
_KNOWN |= {(f"numpy.{core}.numeric", "_frombuffer"): _array for core in ("core", "_core")}


class _PlainUnpickler(pickle.Unpickler):
    """Text, numbers, lists, dicts and arrays of bytes; whatever else a pickle names is not looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise ValueError(f"it names {module}.{name}, which no published data set does")
        return _KNOWN[module, name]
