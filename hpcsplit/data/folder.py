"""Images in folders, one for each class, as torchvision's ImageFolder has them: data.name = "imagefolder".

root/train/cat/1.jpg, root/train/dog/7.png ...   with  root/val/cat/3.jpg ... (or test/, valid/, validation/)
root/cat/1.jpg, root/dog/7.png ...               where data.validation says how many are held out
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hpcsplit.data.catalog import Spec
from hpcsplit.data.dataset import DataOptions, Opened, moments_of_counts, pixel_counts, split_order
from hpcsplit.data.images import SUFFIXES, looks, read_image
from hpcsplit.data.stream import Streamed, loader
from hpcsplit.errors import DataError
from hpcsplit.files.atomic import write_text
from hpcsplit.files.paths import expanded

_TRAIN, _TESTS = "train", ("val", "valid", "validation", "test")
_LOOKED_AT = 64  # files that say whether images are grey
_AT_ONCE = 64
_MANY = 2000  # files that are worth starting processes for


@dataclass(frozen=True)
class ImageFiles:
    """Items of files; `draws` nothing: they are decoded in one way."""

    paths: Sequence[str]
    labels: np.ndarray
    shape: tuple[int, int, int]
    root: str
    draws: bool = False

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        pixels = read_image(Path(self.root, self.paths[number]), self.shape)
        return torch.from_numpy(pixels), torch.tensor(int(self.labels[number]))

    def content(self) -> Iterator[bytes | memoryview]:
        """Names and sizes of all files; what is in them is not read."""
        yield str(self.shape).encode()
        for path, label in zip(self.paths, self.labels, strict=True):
            yield f"{path} {label} {os.stat(os.path.join(self.root, path)).st_size}\n".encode()


@dataclass(frozen=True)
class _Chunks(Dataset[tuple[list[int], Tensor]]):
    """Some files at a time: the numbers of the broken ones, and the pixels of the others by value."""

    files: ImageFiles

    def __len__(self) -> int:
        return -(-len(self.files.paths) // _AT_ONCE)

    def __getitem__(self, chunk: int) -> tuple[list[int], Tensor]:
        if not 0 <= chunk < len(self):
            raise IndexError
        good, bad = [], []
        for number in range(chunk * _AT_ONCE, min((chunk + 1) * _AT_ONCE, len(self.files.paths))):
            try:
                good.append(self.files.item(number)[0])
            except DataError:
                bad.append(number)
        return bad, pixel_counts(torch.stack(good)) if good else torch.zeros(self.files.shape[0], 256).long()


def open_folder(asked: DataOptions) -> Opened:
    """Look at the files and, once for each set, into them: mean and standard deviation, and what is broken.

    Raises:
        DataError: there are none, of a class, or of one size; or a file is broken and data.skip_broken is false.
    """
    root = expanded(asked.root or os.environ.get("HPCSPLIT_DATA", "") or "data", "data.root =")
    parts = _parts(root)
    names = _classes(parts[0])
    found = [_images(part, names) for part in parts]
    shape = _shape(asked, [path for path, _ in found[0]])
    files = [
        ImageFiles(
            [os.path.relpath(path, root) for path, _ in each], np.array([label for _, label in each]), shape, str(root)
        )
        for each in found
    ]
    numbers = [split_order(len(each.paths)) for each in files]
    counts, broken = _looked_into(files, asked)
    notes = tuple[str, ...]()
    if count := sum(map(len, broken)):
        first = Path(root, files[0].paths[broken[0][0]] if broken[0] else files[1].paths[broken[1][0]])
        if not asked.skip_broken:
            read_image(first, shape)  # says what is wrong with it
        notes = (
            f"note: {count} of {sum(len(each.paths) for each in files)} files are broken and skipped, such as {first}",
        )
        numbers = [order[~np.isin(order, bad)] for order, bad in zip(numbers, broken, strict=True)]
    labels = [torch.from_numpy(each.labels[order]) for each, order in zip(files, numbers, strict=True)]
    streamed = [
        Streamed(each, order, asked.seed, asked.workers, label)
        for each, order, label in zip(files, numbers, labels, strict=True)
    ]
    spec = Spec(
        "imagefolder",
        len(numbers[0]),
        len(numbers[1]) if len(parts) > 1 else 0,
        shape,
        len(names),
        flip=True,
        names=tuple(names),
        padding=max(1, min(shape[1:]) // 8),
        in_memory=False,
    )
    known = moments_of_counts(counts)
    return Opened(
        spec, streamed[0], streamed[1] if len(parts) > 1 else None, known, "pixels" if asked.normalise else "", notes
    )


def _parts(root: Path) -> list[Path]:
    """The folder of the training images, and that of the test images where there is one."""
    if not root.is_dir():
        raise DataError(f"data.root = {root} is no folder; give one with a folder of images for each class")
    if not (root / _TRAIN).is_dir():
        return [root]
    tests = [root / name for name in _TESTS if (root / name).is_dir()]
    return [root / _TRAIN, *tests[:1]]


def _classes(folder: Path) -> list[str]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[:1] != ".")
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None
    if not names:
        raise DataError(f"{folder} has no folders; put the images of each class into a folder of its name")
    return names


def _images(folder: Path, names: Sequence[str]) -> list[tuple[str, int]]:
    """Paths, sorted, with the numbers of their classes."""
    if extra := sorted(set(_classes(folder)) - set(names)):
        raise DataError(
            f"{folder / extra[0]} is of a class that the training images do not have: {', '.join(names[:8])}"
        )
    found = []
    for label, name in enumerate(names):
        mine = [
            (os.path.join(where, file), label)
            for where, folders, files in os.walk(folder / name, followlinks=True)
            for file in sorted(files)
            if file.lower().endswith(SUFFIXES)
        ]
        found += sorted(mine)
    if not found:
        raise DataError(f"{folder} has no images; their names end in {', '.join(SUFFIXES)}")
    empty = set(range(len(names))) - {label for _, label in found}
    if empty and folder.name not in _TESTS:
        raise DataError(f"{folder / names[min(empty)]} has no images; remove it, or put the images of that class there")
    return found


def _shape(asked: DataOptions, paths: Sequence[str]) -> tuple[int, int, int]:
    """(C, H, W): grey where all that are looked at are, of data.size pixels, or of the size that they have."""
    few = [Path(paths[k]) for k in np.linspace(0, len(paths) - 1, min(_LOOKED_AT, len(paths)), dtype=int)]
    seen = []
    for path in few:
        try:
            seen.append(looks(path))
        except DataError:
            if not asked.skip_broken:
                raise
    if not seen:
        raise DataError(f"none of {len(few)} images could be read, such as {few[0]}")
    channels = 1 if all(grey for grey, _ in seen) else 3
    if asked.size:
        return channels, asked.size, asked.size
    sizes = {size for _, size in seen}
    if len(sizes) > 1:
        (a, b), (c, d) = sorted(sizes)[:2]
        raise DataError(
            f"images have several sizes, such as {a} x {b} and {c} x {d} pixels; set data.size to the height and width "
            "that all are to have"
        )
    return channels, *sizes.pop()


def _looked_into(files: Sequence[ImageFiles], asked: DataOptions) -> tuple[Tensor, list[list[int]]]:
    """The pixels of the training images by value, int64 (C, 256), and the numbers of broken files in each part.

    One pass over all files; what it finds is kept in the user's cache by their names, sizes and times of change.
    """
    digest = hashlib.sha256(str((files[0].root, files[0].shape)).encode())
    for each in files:
        for path in each.paths:
            state = os.stat(os.path.join(each.root, path))
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    kept = Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hpcsplit", f"{digest.hexdigest()[:32]}.json"
    )
    try:
        known = json.loads(kept.read_text())
        return torch.tensor(known["counts"]), known["broken"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    counts, broken = torch.zeros(files[0].shape[0], 256, dtype=torch.int64), list[list[int]]()
    for each in files:
        broken.append([])
        workers = max(asked.workers, len(os.sched_getaffinity(0))) if len(each.paths) > _MANY else 0
        for bad, seen in loader(_Chunks(each), workers):
            broken[-1] += bad
            counts += seen if each is files[0] else 0
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps({"counts": counts.tolist(), "broken": broken}))
    except OSError:  # the next start looks again
        pass
    return counts, broken
