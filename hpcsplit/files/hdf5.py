"""HDF5 files of two kinds: a mapping of tensors, and a table of equal rows that is filled without the library.

This is the only module that imports h5py.  The library writes into memory alone, since it does not survive a disk that
refuses; what it has made goes to the disk by checked writes.  Files are never locked (many parallel file systems
cannot); every function has closed its file when it returns, so raw reads and writes of the rows never meet the
library's own buffers.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from hpcsplit.errors import CheckpointError, ConfigError
from hpcsplit.files.atomic import free_bytes, gone_on_failure, opened, write_all, write_failure, write_new
from hpcsplit.files.nofollow import open_file

Attribute = str | int | float

NUMPY_TYPES: dict[torch.dtype, type[np.generic]] = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.complex128: np.complex128,
    torch.complex64: np.complex64,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint64: np.uint64,
    torch.uint32: np.uint32,
    torch.uint16: np.uint16,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}
_BITS = {  # of the types that numpy does not know: bfloat16, complex32, float8_e4m3fn, ...
    dtype: {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[dtype.itemsize]
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex) and dtype not in NUMPY_TYPES
}
NUMPY_TYPES |= {dtype: NUMPY_TYPES[bits] for dtype, bits in _BITS.items()}
_TYPE_MARK = "torch_dtype"  # where a dataset has the bits of such a type, its name
_ALIGNMENT_BYTES = 4096
_TEXT_BYTES = 1 << 15  # the library has room for an attribute of 64 KiB


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------------- named tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], attributes: Mapping[str, Attribute]) -> str:
    """Write a new file with one dataset for each tensor, and wait until it is on the disk.

    A "/" in a key makes a group.  Keys, shapes, types and bits come back from `read_tensors`; the order of the keys
    does not.  The file is written in place: give a temporary name and rename it.  Returns the SHA-256 of the content,
    as it was made in memory, which takes as many bytes as the tensors.  StoreError when it cannot be written.
    """
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for key, tensor in tensors.items():
            dataset = file.create_dataset(_link(key, tensors), data=_to_numpy(tensor))
            if tensor.dtype in _BITS:
                _set(dataset, {_TYPE_MARK: dtype_name(tensor.dtype)})
        _set(file, attributes)
    content = image.getbuffer()
    try:
        if content.nbytes > free_bytes(Path(path).parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_new(path, content)
    except OSError as error:
        raise write_failure(path, error, content.nbytes) from error
    return hashlib.sha256(content).hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and attributes of a file by `write_tensors`.  CheckpointError when it is damaged."""
    tensors: dict[str, torch.Tensor] = {}

    def visit(link: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise ValueError(f"{link} refers to another file")
            tensor = torch.from_numpy(np.asarray(item[()]))
            tensors[_key(link)] = tensor.view(_dtype(item))

    with _opened(path) as file:
        file.visititems(visit)
        return tensors, _plain(file.attrs)


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of the file as str, int, float or bool.  CheckpointError when it is damaged."""
    with _opened(path) as file:
        return _plain(file.attrs)


def set_attributes(path: Path, attributes: Mapping[str, Attribute]) -> None:
    """Change or add attributes.  A number takes the place of the old number, so the file does not grow.  StoreError."""
    try:
        with opened(path, os.O_RDWR) as disk:
            changes = _Changes(disk)
            with h5py.File(changes, "r+") as file:
                present = _plain(file.attrs)
                _set(file, {k: v for k, v in attributes.items() if k not in present or present[k] != v})
            changes.apply()
    except OSError as error:
        raise write_failure(path, error) from error


class _Changes(io.RawIOBase):
    """A file for the library to work on: it reads what is on the disk, and what it writes stays here until `apply`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._position = 0
        self._written: list[tuple[int, bytes]] = []

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        view, first = memoryview(buffer).cast("B"), self._position
        content = bytearray(os.pread(self.descriptor, len(view), first).ljust(len(view), b"\0"))
        for offset, piece in self._written:
            begin, end = max(first, offset), min(first + len(view), offset + len(piece))
            if begin < end:
                content[begin - first : end - first] = piece[begin - offset : end - offset]
        view[:] = content
        self._position += len(view)
        return len(view)

    def write(self, content: Any) -> int:
        piece = bytes(content)
        self._written.append((self._position, piece))
        self._position += len(piece)
        self.size = max(self.size, self._position)
        return len(piece)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def apply(self) -> None:
        """Write to the disk what the library has written.  Raises OSError."""
        for offset, piece in self._written:
            write_all(self.descriptor, piece, offset)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.dtype in NUMPY_TYPES, f"no HDF5 type for {tensor.dtype}"
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.view(_BITS.get(plain.dtype, plain.dtype)).numpy()


def _dtype(dataset: h5py.Dataset) -> torch.dtype:
    """The type of a dataset's values: the one it is marked with, or its own."""
    own = torch.from_numpy(np.empty(0, dataset.dtype)).dtype
    mark = _plain(dataset.attrs).get(_TYPE_MARK)
    if mark is None:
        return own
    marks = {dtype_name(dtype): dtype for dtype, bits in _BITS.items() if bits == own}
    if mark not in marks:
        raise ValueError(f"{dataset.name} has the type {mark!r}, which this torch does not know")
    return marks[mark]


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _set(file: h5py.File | h5py.Dataset, attributes: Mapping[str, Attribute]) -> None:
    """Write attributes; texts of fixed length, since in a damaged file the library looks for others for ever."""
    for name, value in attributes.items():
        if isinstance(value, str) and len(raw := value.encode()) <= _TEXT_BYTES:
            file.attrs.create(name, np.array(raw, f"S{max(1, len(raw))}"))
        elif isinstance(value, str):
            file.attrs[name] = value
        else:
            file.attrs.modify(name, value)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        os.close(open_file(path, os.O_RDONLY))  # the library would wait for a pipe, and follow a link
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ConfigError:
        raise
    except Exception as error:  # the library raises nearly every built-in exception on a damaged file
        raise CheckpointError(
            f"{path} cannot be read as an HDF5 file ({error}); resume from another checkpoint or restore it from a copy"
        ) from error


def _link(key: str, keys: Mapping[str, Any]) -> str:
    """The path of a key's dataset: the key, but where HDF5 cannot have that name a "%" says what stands there."""
    names = {"": "%-", ".": "%."}
    parts = (names.get(part, part.replace("%", "%25").replace("\0", "%00")) for part in key.split("/"))
    is_group = any(other.startswith(key + "/") for other in keys)
    return "/".join(parts) + ("%" if is_group else "")


def _key(link: str) -> str:
    names = {"%-": "", "%.": "."}
    parts = link.removesuffix("%").split("/")
    return "/".join(names.get(part, part.replace("%00", "\0").replace("%25", "%")) for part in parts)


# ---------------------------------------------------------------------------------------------------- equal rows


@dataclass(frozen=True)
class RowsLayout:
    """Where the rows of a file lie.  Offsets and sizes in bytes from the start of the file."""

    rows: int
    row_shape: tuple[int, ...]
    dtype: torch.dtype
    rows_offset: int  # dataset "rows" (rows, *row_shape)
    index_offset: int  # dataset "index" (rows,) int64: the sample at each position
    size_bytes: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * self.dtype.itemsize


def create_rows(
    path: Path, rows: int, row_shape: tuple[int, ...], dtype: torch.dtype, attributes: Mapping[str, Attribute]
) -> RowsLayout:
    """Create a file for `rows` rows (mode 0600) with its whole space reserved and nothing written.

    Both datasets are contiguous, allocated at once and begin on a page, ready for pread, pwrite and mmap at the offsets
    returned.  OSError (ENOSPC, EDQUOT) when there is no room; the file is then gone.
    """
    with gone_on_failure(path), opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) as descriptor:
        changes = _Changes(descriptor)
        with h5py.File(
            changes, "w", alignment_threshold=_ALIGNMENT_BYTES // 8, alignment_interval=_ALIGNMENT_BYTES
        ) as file:
            _allocate(file, "rows", (rows, *row_shape), NUMPY_TYPES[dtype])
            _allocate(file, "index", (rows,), np.int64)
            if dtype in _BITS:
                _set(file["rows"], {_TYPE_MARK: dtype_name(dtype)})
            _set(file, attributes)
        os.posix_fallocate(descriptor, 0, changes.size)
        changes.apply()
        return rows_layout(path)


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], numpy_type: type[np.generic]) -> None:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(
        file.id, name.encode(), h5py.h5t.py_create(np.dtype(numpy_type)), h5py.h5s.create_simple(shape), plan
    )


def reserve(path: Path, size_bytes: int) -> None:
    """Give the first `size_bytes` of the file their blocks on the disk.  OSError (ENOSPC, EDQUOT) without room."""
    with opened(path, os.O_RDWR) as descriptor:
        os.posix_fallocate(descriptor, 0, size_bytes)


def rows_layout(path: Path) -> RowsLayout:
    """The layout of an existing file by `create_rows`.  CheckpointError when it is damaged or of another kind."""
    with _opened(path) as file:
        rows, index = file["rows"], file["index"]
        layout = RowsLayout(
            rows=rows.shape[0],
            row_shape=tuple(rows.shape[1:]),
            dtype=_dtype(rows),
            rows_offset=rows.id.get_offset(),
            index_offset=index.id.get_offset(),
            size_bytes=os.path.getsize(path),
        )
        if (
            None in (layout.rows_offset, layout.index_offset)
            or index.shape != rows.shape[:1]
            or index.dtype != np.int64
        ):
            raise ValueError("the datasets rows and index are not contiguous or do not belong together")
        ends = (layout.rows_offset + layout.rows * layout.row_bytes, layout.index_offset + layout.rows * 8)
        if max(ends) > layout.size_bytes:
            raise ValueError(f"it is cut off: {layout.size_bytes} bytes, {max(ends)} expected")
        return layout
