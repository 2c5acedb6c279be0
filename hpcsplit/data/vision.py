"""Data sets that torchvision knows, read from a folder or downloaded by it.  The only importer of torchvision."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hpcsplit.data import decode
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
            if download:
                _download(spec, folder)
            return _part(spec, folder, True), _part(spec, folder, False)
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


def _part(spec: Spec, folder: Path, train: bool) -> Part:
    from torchvision import datasets

    kind = getattr(datasets, LAYOUT[spec.name][0])
    if spec.name == "svhn":
        _, file, md5 = kind.split_list["train" if train else "test"]
        return Part.of(*decode.svhn(decode.content(folder / file, md5)))
    if spec.name.startswith("cifar"):
        files = [
            (folder / kind.base_folder / name, md5) for name, md5 in (kind.train_list if train else kind.test_list)
        ]
        pieces = [decode.cifar(decode.content(path, md5)) for path, md5 in files]
        labels = [label for _, piece in pieces for label in piece]
        return Part.of(np.concatenate([images for images, _ in pieces]), np.array(labels))
    prefix = folder / kind.__name__ / "raw" / ("train" if train else "t10k")
    images = decode.idx(decode.content(Path(f"{prefix}-images-idx3-ubyte")), 3)
    return Part.of(images[:, None], decode.idx(decode.content(Path(f"{prefix}-labels-idx1-ubyte")), 1))


def _download(spec: Spec, folder: Path) -> None:
    """Let torchvision fetch what is absent, and read nothing: its way of reading runs what a pickle says."""
    from torchvision import datasets

    kind = getattr(datasets, LAYOUT[spec.name][0])
    if spec.name == "svhn":
        for split in ("train", "test"):
            url, file, md5 = kind.split_list[split]
            datasets.utils.download_url(url, str(folder), file, md5)
        return
    fetcher = kind.__new__(kind)  # without __init__, which reads
    fetcher.root = str(folder)
    fetcher.download()


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
        images = decode.idx(gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes()), 3)
        labels = decode.idx(gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes()), 1)
        return Part.of(images[:, None], labels)

    try:
        return part("train"), part("t10k")
    except (OSError, EOFError, ValueError) as problem:
        raise DataError(
            f"{spec.name} in {folder} cannot be read ({problem}); "
            f"install Debian's package dataset-fashion-mnist again, or set data.root to another copy"
        ) from problem
