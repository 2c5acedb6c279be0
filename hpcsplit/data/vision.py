"""Data sets that torchvision knows, read from a folder or downloaded by it.  The only importer of torchvision."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcsplit.data import decode
from hpcsplit.data.catalog import Spec
from hpcsplit.data.dataset import DataOptions, InMemory, Opened, Part
from hpcsplit.data.factory import MapItems, opened_map
from hpcsplit.data.files import Files
from hpcsplit.errors import DataError
from hpcsplit.files.paths import expanded

# data set -> folder of a Debian package (dataset-fashion-mnist) with gzipped idx files
PACKAGED = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
NETWORK_TIMEOUT_S = 10.0


def folder_of(root: str) -> Path:
    """The folder meant by data.root, or where that is empty by $HPCSPLIT_DATA, or else ./data; see paths.expanded."""
    given = root or os.environ.get("HPCSPLIT_DATA", "")
    return expanded(given or "data", "data.root =" if root else "$HPCSPLIT_DATA =")


def read(spec: Spec, root: str, download: bool) -> tuple[InMemory, InMemory]:
    """Training and test part of `spec` from folder_of(root), in any of the places of data/files.py.

    When `root` is empty and the folder lacks the set, Debian's package is taken if installed.  With `download`,
    torchvision fetches what is still absent.  DataError says what to do when that leaves nothing, or when files cannot
    be read.
    """
    folder, layout = folder_of(root), spec.layout
    assert layout, f"{spec.name} has no layout"
    files = Files(layout, folder)
    packaged = None if root else PACKAGED.get(spec.name)
    if packaged and packaged.is_dir() and not files.place:
        try:
            return _parts(spec.name, Files(layout, packaged))
        except (OSError, ValueError) as problem:
            raise DataError(
                f"{spec.name} in {packaged} cannot be read ({problem}); "
                f"install Debian's package dataset-fashion-mnist again, or set data.root to another copy"
            ) from problem
    if not files.place and not download:
        also = f" nor in {packaged}" if packaged else ""
        packed = f" ({', '.join(files.others()[:3])} cannot be read: unpack it there)" if files.others() else ""
        expected = (folder / layout.folder / layout.names[0]).absolute()
        raise DataError(
            f"{spec.name} is not there: found no {expected}{also}{packed}; "
            f"set data.root to a folder that has it in torchvision's layout, or data.download = true"
        )
    try:
        with _calm():
            if download and not files.complete:
                _download(spec.name, layout.kind, folder)
                files = Files(layout, folder)
            return _parts(spec.name, files)
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
            f"{spec.name} in {files.place} is incomplete or damaged ({reason}); "
            f"replace the files, or delete them and set data.download = true"
        ) from problem


def _parts(name: str, files: Files) -> tuple[InMemory, InMemory]:
    """Training and test part."""
    if files.layout.family:
        return _idx(files, "train"), _idx(files, "t10k")
    from torchvision import datasets

    kind = getattr(datasets, files.layout.kind)
    if name == "svhn":
        train, test = (Part.of(*decode.svhn(files.read(*kind.split_list[split][1:]))) for split in ("train", "test"))
    else:
        train, test = (_cifar(files, pieces) for pieces in (kind.train_list, kind.test_list))
    return train, test


def _cifar(files: Files, published: list[list[str]]) -> InMemory:
    pieces = [decode.cifar(files.read(name, md5)) for name, md5 in published]
    labels = [label for _, piece in pieces for label in piece]
    return Part.of(np.concatenate([images for images, _ in pieces]), np.array(labels))


def _idx(files: Files, prefix: str) -> InMemory:
    images = decode.idx(files.read(f"{prefix}-images-idx3-ubyte"), 3)
    labels = decode.idx(files.read(f"{prefix}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} {prefix} images have {len(labels)} labels")
    return Part.of(images[:, None], labels)


def _download(name: str, kind_name: str, folder: Path) -> None:
    """Let torchvision fetch what is absent, and read nothing: its way of reading runs what a pickle says."""
    from torchvision import datasets

    kind = getattr(datasets, kind_name)
    if name == "svhn":
        for url, file, md5 in (kind.split_list[split] for split in ("train", "test")):
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


_SPLITS = (("train", "test"), ("train", "val"), ("train", "valid"), ("trainval", "test"))  # as torchvision calls them


def open_class(asked: DataOptions) -> Opened:
    """A set of torchvision's with a class for each image, by the name of its class: "torchvision:EuroSAT".

    DataError where torchvision has no such set, or where it is absent or damaged.
    """
    from torchvision import datasets

    name, root = asked.name.partition(":")[2], str(folder_of(asked.root))
    kind = getattr(datasets, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, datasets.VisionDataset):
        raise DataError(f'data.name = "{asked.name}": torchvision has no data set {name}; see torchvision.datasets')
    parameters = inspect.signature(kind).parameters
    common: dict[str, Any] = {"name": name, "root": root, "download": asked.download and "download" in parameters}
    parts: list[dict[str, Any]] = [{}]
    if "train" in parameters:
        parts = [{"train": True}, {"train": False}]
    elif "split" in parameters:
        known = next((pair for pair in _SPLITS if _has_split(kind, root, pair)), _SPLITS[0])
        parts = [{"split": split} for split in known]
    every = [
        MapItems(_of_class, {**common, "options": part}, f'data.name = "{asked.name}"', (), draws=False)
        for part in parts
    ]
    with _calm():
        for items in every:
            try:
                assert items.dataset is not None
            except Exception as problem:  # torchvision meets what it does not find with errors of every kind
                reason = " ".join(str(problem).split()) or type(problem).__name__
                raise DataError(
                    f"{name} in {root} cannot be read ({reason}); set data.root to a folder that has it in "
                    "torchvision's layout, or data.download = true"
                ) from problem
    opened = opened_map(asked, every, f'data.name = "{asked.name}"')
    padding = max(1, min(opened.spec.shape[1:]) // 8)
    return replace(opened, spec=replace(opened.spec, flip=True, padding=padding))


def _has_split(kind: Any, root: str, splits: tuple[str, str]) -> bool:
    """Whether a class knows both; it refuses the others with ValueError, before or behind the search for files."""
    for split in splits:
        try:
            kind(root, split=split)
        except ValueError as problem:
            if split in str(problem):
                return False
        except Exception:
            continue
    return True


def _of_class(name: str, root: str, *, download: bool, options: dict[str, Any]) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, name)
    keywords = {"root": root} if "root" in inspect.signature(kind).parameters else {}
    return kind(**keywords, **options, **({"download": True} if download else {}))
