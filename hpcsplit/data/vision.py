"""Data sets that torchvision knows, read from a folder or downloaded.  The only importer of torchvision."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcsplit.data.catalog import Spec
from hpcsplit.data.part import Part
from hpcsplit.errors import DataError

# data set -> torchvision's class, and a file that its layout has
LAYOUT = {
    "mnist": ("MNIST", "MNIST/raw/train-images-idx3-ubyte"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw/train-images-idx3-ubyte"),
    "kmnist": ("KMNIST", "KMNIST/raw/train-images-idx3-ubyte"),
    "svhn": ("SVHN", "train_32x32.mat"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py/data_batch_1"),
    "cifar100": ("CIFAR100", "cifar-100-python/train"),
}
# data set -> folder of a Debian package (dataset-fashion-mnist) with gzipped idx files
PACKAGED = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
NETWORK_TIMEOUT_S = 10.0


def folder_of(root: str) -> Path:
    """The folder meant by data.root: itself with ~ and $VARIABLES replaced; empty: $HPCSPLIT_DATA, or else ./data."""
    return Path(os.path.expandvars(root or os.environ.get("HPCSPLIT_DATA") or "data")).expanduser()


def read(spec: Spec, root: str, *, download: bool) -> tuple[Part, Part]:
    """Training and test part of `spec` from folder_of(root).

    When `root` is empty and the folder lacks the set, Debian's package is taken if installed.  With `download`,
    torchvision fetches what is still absent.  DataError says what to do when that leaves nothing, or when files cannot
    be read.
    """
    folder = folder_of(root)
    expected = folder / LAYOUT[spec.name][1]
    packaged = None if root else PACKAGED.get(spec.name)
    if packaged and packaged.is_dir() and not expected.exists():
        return _packaged(spec, packaged)
    if not expected.exists() and not download:
        also = f" nor in {packaged}" if packaged else ""
        raise DataError(
            f"{spec.name} is not there: found no {expected.absolute()}{also}; "
            f"set data.root to a folder that has it in torchvision's layout, or data.download = true"
        )
    try:
        with _calm():
            return _part(spec, folder, True, download), _part(spec, folder, False, download)
    except MemoryError:
        raise
    except Exception as problem:  # torchvision meets damaged files and broken networks with errors of every kind
        reason = " ".join(str(problem).split()) or type(problem).__name__
        if download:
            raise DataError(
                f"{spec.name} could not be downloaded to {folder} ({reason}); "
                f"repeat this with network access, or set data.root to a folder that has the files"
            ) from problem
        raise DataError(
            f"{spec.name} in {folder} is incomplete or damaged ({reason}); "
            f"replace the files, or delete them and set data.download = true"
        ) from problem


def _part(spec: Spec, folder: Path, train: bool, download: bool) -> Part:
    from torchvision import datasets

    kind = getattr(datasets, LAYOUT[spec.name][0])
    if spec.name == "svhn":
        found = kind(folder, split="train" if train else "test", download=download)
        return Part.of(found.data, found.labels)
    found = kind(folder, train=train, download=download)
    images = np.asarray(found.data)
    if images.ndim == 3:  # grey: (N, H, W)
        images = images[:, None]
    else:  # colour: (N, H, W, C)
        images = images.transpose(0, 3, 1, 2)
    return Part.of(images, np.asarray(found.targets))


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """Keeps torchvision's messages off stdout, which belongs to our own records, and its network calls short."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _packaged(spec: Spec, folder: Path) -> tuple[Part, Part]:
    def part(prefix: str) -> Part:
        images = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", 3)
        return Part.of(images[:, None], _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 1))

    try:
        return part("train"), part("t10k")
    except (OSError, EOFError, ValueError) as problem:
        raise DataError(
            f"{spec.name} in {folder} cannot be read ({problem}); "
            f"install Debian's package dataset-fashion-mnist again, or set data.root to another copy"
        ) from problem


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """A gzipped idx file of unsigned bytes: magic number 0x0800 + dimensions, sizes as big-endian int32, the bytes."""
    content = gzip.decompress(path.read_bytes())
    header = np.frombuffer(content, ">i4", 1 + dimensions)
    if header[0] != 0x0800 + dimensions:
        raise ValueError(f"{path.name} is no idx file of {dimensions} dimensions")
    return np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(header[1:])
