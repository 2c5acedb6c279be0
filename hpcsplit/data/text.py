"""A text as tokens, one for each byte: data.name = "text", with data.root a file, or a folder with train.txt and
test.txt (or val.txt).  Of one file the last tenth is the test part.

A sample is `data.context` bytes in a row; its target is the byte that follows each of them.  With data.augment the
samples of an epoch begin elsewhere, by a shift of each sample's own below data.context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hpcsplit.data.catalog import Spec
from hpcsplit.data.dataset import AS_IT_IS, DataOptions, Opened, Part
from hpcsplit.data.source import draw
from hpcsplit.errors import DataError
from hpcsplit.files.paths import expanded

TOKENS = 256
_TESTS = ("test.txt", "val.txt", "valid.txt")
_TEST_SHARE = 10  # one part in so many


@dataclass(frozen=True)
class Text(Part):
    """`context` bytes for each sample, one behind the other from byte `first` on."""

    tokens: np.ndarray  # uint8
    context: int
    size: int
    seed: int
    begin: int = 0  # the number of its first sample in `tokens`

    def __len__(self) -> int:
        return self.size

    def inputs(self, ids: np.ndarray, epoch: int = AS_IT_IS) -> Tensor:
        return self._tokens(ids, epoch, 0)

    def targets(self, ids: np.ndarray, epoch: int = AS_IT_IS) -> Tensor:
        return self._tokens(ids, epoch, 1)

    def _tokens(self, ids: np.ndarray, epoch: int, ahead: int) -> Tensor:
        start = self.context * (self.begin + ids % self.size)
        moved = ids >= self.size if epoch == AS_IT_IS else np.ones(len(ids), bool)  # copies begin elsewhere, too
        start = start + np.where(moved, draw(ids, seed=self.seed, epoch=epoch, padding=self.context // 2)[0], 0)
        start = np.minimum(start, self.context * (self.begin + self.size - 1))  # nothing of another part
        rows = self.tokens[start[:, None] + np.arange(ahead, ahead + self.context)]
        return torch.from_numpy(rows.astype(np.int64))

    def between(self, first: int, last: int) -> Self:
        return replace(self, size=last - first, begin=self.begin + first)

    def content(self) -> Iterator[bytes | memoryview]:
        yield f"{self.context} {self.begin} {self.size}".encode()
        yield hashlib.sha256(self.tokens.data).digest()


def open_text(asked: DataOptions) -> Opened:
    """DataError where there is no text, or too little of it."""
    if not asked.root:
        raise DataError('data.name = "text" needs data.root: a text file, or a folder with train.txt and test.txt')
    path = expanded(asked.root, "data.root =")
    if path.is_dir():
        others = [path / name for name in _TESTS if (path / name).exists()]
        if not others:
            raise DataError(f"data.root = {path} has no test.txt; put train.txt and test.txt there, or give one file")
        train, test = _read(path / "train.txt"), _read(others[0])
    else:
        whole = _read(path)
        cut = len(whole) - len(whole) // _TEST_SHARE
        train, test = whole[:cut], whole[cut:]
    sizes = [(len(tokens) - 1) // asked.context for tokens in (train, test)]
    if min(sizes) < 1:
        raise DataError(
            f"data.root = {path} has {len(train)} training and {len(test)} test bytes, and a sample of data.context = "
            f"{asked.context} needs {asked.context + 1}; give more text, or lower data.context"
        )
    shape = (asked.context,)
    numbers: dict[str, Any] = {"train": sizes[0], "test": sizes[1], "shape": shape, "target_shape": shape}
    spec = Spec("text", **numbers, classes=TOKENS, flip=False, kind="tokens", padding=0, in_memory=False)
    parts = [Text(tokens, asked.context, size, asked.seed) for tokens, size in zip((train, test), sizes, strict=True)]
    return Opened(spec, parts[0], parts[1])


def _read(path: Path) -> np.ndarray:
    """The bytes of a file, which stay on the disk until they are needed."""
    try:
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; set data.root to a text file") from None
