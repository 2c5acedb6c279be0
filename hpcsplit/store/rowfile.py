"""Raw reads and writes of the rows of one HDF5 file: a gather through a memory map, a pwrite for each batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from hpcsplit.errors import NumericalError
from hpcsplit.files.atomic import write_all, write_failure
from hpcsplit.files.hdf5 import Attribute, RowsLayout, create_rows, dtype_name, set_attributes
from hpcsplit.files.nofollow import open_file

_BLOCK_BYTES = 1 << 25
_NEAR_BYTES = 1 << 16  # reading through a gap of this size is cheaper than one more request
_PROBES = 2


class RowFile:
    """An open file of `layout.rows` rows.  A position is the place of a row in the file, 0 .. rows - 1."""

    def __init__(self, path: Path, layout: RowsLayout, *, writable: bool = True) -> None:
        self.path, self.layout = path, layout
        self._fd = open_file(path, os.O_RDWR if writable else os.O_RDONLY)
        shape = (layout.rows, layout.row_bytes)
        with open(self._fd, "rb", closefd=False) as file:
            self._map = np.memmap(file, np.uint8, "r", offset=layout.rows_offset, shape=shape)

    def gather(self, positions: np.ndarray) -> torch.Tensor:
        """The rows at `positions`, (B, *row_shape) in the file's type."""
        rows = torch.empty((len(positions), *self.layout.row_shape), dtype=self.layout.dtype)
        np.take(self._map, positions, axis=0, out=row_bytes(rows), mode="clip")
        return rows

    def advise(self, positions: np.ndarray) -> None:
        """Have the kernel begin to read the rows at `positions`, unless a sample of them is in memory already."""
        if all(map(self._is_cached, positions[:: max(1, len(positions) // _PROBES)].tolist())):
            return
        starts = np.sort(self.layout.rows_offset + positions * self.layout.row_bytes)
        ends = starts + self.layout.row_bytes
        gaps = np.flatnonzero(starts[1:] > ends[:-1] + _NEAR_BYTES)
        firsts, lasts = starts[np.r_[0, gaps + 1]], ends[np.r_[gaps, len(ends) - 1]]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            os.posix_fadvise(self._fd, first, last - first, os.POSIX_FADV_WILLNEED)

    def _is_cached(self, position: int) -> bool:
        offset = self.layout.rows_offset + position * self.layout.row_bytes
        try:
            return os.preadv(self._fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except OSError:  # not in memory, or a file system that cannot tell
            return False

    def put(self, first: int, rows: torch.Tensor) -> int:
        """Write `rows` (B, *row_shape), of any float type, to the positions from `first` on; their `checksum`.

        Raises NumericalError where they are too large for the file's type.
        """
        stored = narrowed(rows.detach(), self.layout.dtype, str(self.path)).contiguous()
        assert stored.shape[1:] == self.layout.row_shape, f"{self.path}: rows of shape {tuple(stored.shape[1:])}"
        assert first + len(stored) <= self.layout.rows, f"{self.path}: {first} + {len(stored)} rows"
        content = row_bytes(stored)
        self._write(content, self.layout.rows_offset + first * self.layout.row_bytes)
        return checksum(content, first)

    def put_index(self, samples: np.ndarray) -> int:
        """Write which sample is at each position, (rows,) int64; its `checksum`."""
        assert samples.shape == (self.layout.rows,)
        content = np.ascontiguousarray(samples, np.int64).view(np.uint8).reshape(-1, 8)
        self._write(content, self.layout.index_offset)
        return checksum(content, 0)

    def index(self) -> np.ndarray:
        """The sample at each position, (rows,) int64."""
        content = os.pread(self._fd, self.layout.rows * 8, self.layout.index_offset)
        return np.frombuffer(content, np.int64).copy()

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """All rows in the order of the file, as (position of the first, rows); memory stays bounded."""
        step = max(1, _BLOCK_BYTES // self.layout.row_bytes)
        for first in range(0, self.layout.rows, step):
            yield first, self.gather(np.arange(first, min(first + step, self.layout.rows)))

    def total(self) -> int:
        """The checksum of the whole content, rows and index."""
        rows = sum(checksum(row_bytes(block), first) for first, block in self.blocks())
        return wrap(rows + checksum(self.index().view(np.uint8).reshape(-1, 8), 0))

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            del self._map

    def _write(self, content: np.ndarray, offset: int) -> None:
        try:
            write_all(self._fd, content.data, offset)
        except OSError as error:
            raise write_failure(self.path, error, content.nbytes) from error


def write_rows(path: Path, rows: torch.Tensor, attributes: Mapping[str, Attribute]) -> None:
    """Write a whole file, durably: `rows` (N, *row_shape) in the order of the samples.  StoreError without room."""
    try:
        layout = create_rows(path, len(rows), tuple(rows.shape[1:]), rows.dtype, {**attributes, "complete": 0})
    except OSError as error:
        raise write_failure(path, error, rows.numel() * rows.element_size()) from error
    with closing(RowFile(path, layout)) as file:
        file.put(0, rows)
        file.put_index(np.arange(len(rows)))
        set_attributes(path, {"complete": 1})
        file.sync()


def narrowed(rows: torch.Tensor, dtype: torch.dtype, owner: str) -> torch.Tensor:
    """The rows in this type; NumericalError, which names it, where a number is too large for it."""
    stored = rows.to(dtype)
    if dtype.itemsize < rows.dtype.itemsize and stored.isinf().any() and (stored.isinf() & rows.isfinite()).any():
        largest = float(rows[rows.isfinite()].abs().max())
        raise NumericalError(
            f"{owner}: a row reaches {largest:.4g}, its type {dtype_name(dtype)} ends at {torch.finfo(dtype).max:g}. "
            'Continue with store.dtype = "bfloat16" or "float32"; if it grows there, too, training diverges: lower '
            "optim.lr"
        )
    return stored


def row_bytes(rows: torch.Tensor) -> np.ndarray:
    """The memory of contiguous rows (B, ...) as (B, bytes of a row) uint8, shared."""
    return rows.reshape(len(rows), -1).view(torch.uint8).numpy()


def checksum(content: np.ndarray, first: int) -> int:
    """A 64-bit sum of rows (B, bytes) uint8 at the positions from `first` on; sums of disjoint parts add up (`wrap`).

    Each row's words are added and weighted by the position, so lost, changed, torn and exchanged rows are noticed.
    """
    width = next(width for width in (8, 4, 2, 1) if content.shape[1] % width == 0)
    sums = content.view(f"u{width}").sum(axis=1, dtype=np.uint64)
    weights = np.arange(first, first + len(content), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return wrap(int((sums * weights).sum(dtype=np.uint64)))


def wrap(total: int) -> int:
    """The value of `total` modulo 2^64 as a signed 64-bit number, the form that HDF5 and JSON both keep."""
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)
