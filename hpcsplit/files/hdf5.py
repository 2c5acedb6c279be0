"""HDF5 files of two kinds: a mapping of tensors, and a table of equal rows that is filled without the library.

This is the only module that imports h5py, for writing; hdf5_format reads, since the library does not survive a damaged
file.  Only what users bring in files of their own, `user_arrays`, is read by it.  It does not survive a disk that
refuses, either, so it writes into memory alone, and what it has made goes to the disk by checked writes.  Files are
never locked (many parallel file systems cannot); every function has closed its file when it returns.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from hpcsplit.errors import CheckpointError
from hpcsplit.files.atomic import Buffer, free_bytes, gone_on_failure, write_all, write_failure, write_new
from hpcsplit.files.hdf5_format import VARIABLE_TEXT, Contents, StoredArray, Value, VariableText, parse
from hpcsplit.files.nofollow import open_file, opened

Attribute = str | int | float

_FRACTIONS = ("float64", "float32", "float16", "complex128", "complex64")
_WHOLE = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
NUMPY_TYPES: dict[torch.dtype, type[np.generic]] = {
    getattr(torch, name): np.dtype(name).type for name in (*_FRACTIONS, *_WHOLE)
}
_BITS = {  # of the types that numpy does not know: bfloat16, complex32, float8_e4m3fn, ...
    dtype: {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[dtype.itemsize]
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex) and dtype not in NUMPY_TYPES
}
NUMPY_TYPES |= {dtype: NUMPY_TYPES[bits] for dtype, bits in _BITS.items()}
_TYPE_MARK = "torch_dtype"  # where a dataset has the bits of such a type, its name
_ALIGNMENT_BYTES = 4096
_OLDEST = ("earliest", "latest")  # the structures that hdf5_format reads, whatever the library would choose
_TEXT_BYTES = 1 << 15  # of one piece; the library has room for an attribute of 64 KiB
_PIECE = "#"  # begins the number of a further piece of a text in the name of its attribute


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


class Changes(io.RawIOBase):
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


# ---------------------------------------------------------------------------------------------------- named tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], attributes: Mapping[str, Attribute]) -> str:
    """Write a new file with one dataset for each tensor, and wait until it is on the disk.

    A "/" in a key makes a group.  Keys, shapes, types and bits come back from `read_tensors`; the order of the keys
    does not.  The file is written in place: give a temporary name and rename it.  Returns the SHA-256 of the content,
    as it was made in memory, which takes as many bytes as the tensors.  StoreError when it cannot be written.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver=_OLDEST) as file:
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


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Stored:
    """An image of a file by `write_tensors`: its `headers` by key, its `attributes` as str, int, float or bool, and
    each tensor when it is asked for.

    CheckpointError, which names `path`, when the file is damaged or has anything that this program does not write.
    """

    def __init__(self, image: Buffer, path: Path) -> None:
        self._image, self._path = memoryview(image), path
        with _readable(path):
            result = parse(lambda offset, size: bytes(self._image[offset : offset + size]), len(self._image), _types())
            self._datasets = {_key(link): dataset for link, dataset in result.datasets.items()}
            self.headers = {key: Header(d.shape, _torch_type(d)) for key, d in self._datasets.items()}
            self.attributes = _plain(result.attributes)

    def tensor(self, key: str) -> torch.Tensor:
        """A copy of the tensor, on the CPU."""
        result, header = self._datasets[key], self.headers[key]
        tensor = torch.empty(header.shape, dtype=header.dtype)
        if result.size:
            raw = np.frombuffer(self._image, np.uint8, result.size, result.offset)
            tensor.view(-1).view(torch.uint8).numpy()[:] = raw
        return tensor


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and attributes of a file by `write_tensors`.  CheckpointError when it is damaged."""
    with _readable(path), open(path, "rb", opener=open_file) as file:
        image = file.read()
    stored = Stored(image, path)
    return {key: stored.tensor(key) for key in stored.headers}, stored.attributes


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of the file as str, int, float or bool.  CheckpointError when it is damaged."""
    with _readable(path):
        return _plain(_contents(path)[0].attributes)


def _contents(path: Path) -> tuple[Contents, int]:
    """What a file of any size holds, and its size."""
    with open(path, "rb", buffering=0, opener=open_file) as file:
        size = os.fstat(file.fileno()).st_size
        return parse(lambda offset, length: os.pread(file.fileno(), length, offset), size, _types()), size


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{path} cannot be read as an HDF5 file of this program ({reason}); resume from another checkpoint or "
            "restore it from a copy"
        ) from error


@cache
def _types() -> dict[bytes, np.dtype[Any]]:
    """The numbers that `write_tensors` and `_set` write, by their description in a file."""
    kinds = [np.dtype(kind) for kind in NUMPY_TYPES.values()]
    return {h5py.h5t.py_create(kind, logical=True).encode()[2:]: kind for kind in kinds}


def _torch_type(result: StoredArray) -> torch.dtype:
    """The type of an array's values: the one that it is marked with, or its own."""
    own, mark = torch.from_numpy(np.empty(0, result.dtype)).dtype, result.attributes.get(_TYPE_MARK)
    if mark is None:
        return own
    if mark == VARIABLE_TEXT and own == torch.uint16:  # as older files mark bfloat16
        return torch.bfloat16
    marks = {dtype_name(dtype).encode(): dtype for dtype, bits in _BITS.items() if bits == own}
    if not isinstance(mark, bytes) or mark not in marks:
        raise ValueError(f"it has an array of another type than it says, or than this torch knows: {mark!r}")
    return marks[mark]


def set_attributes(path: Path, attributes: Mapping[str, Attribute]) -> None:
    """Change or add attributes.  A number takes the place of the old number, so the file does not grow.  StoreError."""
    present = read_attributes(path)
    try:
        with opened(path, os.O_RDWR) as disk:
            changes = Changes(disk)
            with h5py.File(changes, "r+", libver=_OLDEST) as file:
                _set(file, {k: v for k, v in attributes.items() if k not in present or present[k] != v})
            changes.apply()
    except OSError as error:
        raise write_failure(path, error) from error


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.dtype in NUMPY_TYPES, f"no HDF5 type for {tensor.dtype}"
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.view(_BITS.get(plain.dtype, plain.dtype)).numpy()


def _plain(attributes: Mapping[str, Value | VariableText]) -> dict[str, Any]:
    """The values, texts decoded and put together of their pieces."""
    values: dict[str, Any] = {}
    for name, value in sorted(attributes.items()):
        whole, piece, _ = name.partition(_PIECE)
        if isinstance(value, VariableText):
            raise ValueError(f"its attribute {name!r} is text of variable length, which is not read")
        values[whole] = values.get(whole, b"") + value if piece else value
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _set(file: h5py.File | h5py.StoredArray, attributes: Mapping[str, Attribute]) -> None:
    """Write attributes; texts of fixed length, in pieces, since in a damaged file others may lie anywhere."""
    for name, value in attributes.items():
        if isinstance(value, str):
            raw = value.encode()
            for number, first in enumerate(range(0, max(1, len(raw)), _TEXT_BYTES)):
                piece = raw[first : first + _TEXT_BYTES]
                key = f"{name}{_PIECE}{number:04d}" if number else name
                file.attrs.create(key, np.array(piece, f"S{max(1, len(piece))}"))
        else:
            file.attrs.modify(name, value)


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
        changes = Changes(descriptor)
        with h5py.File(
            changes, "w", libver=_OLDEST, alignment_threshold=_ALIGNMENT_BYTES // 8, alignment_interval=_ALIGNMENT_BYTES
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
    with _readable(path):
        result, size = _contents(path)
        if result.datasets.keys() != {"rows", "index"}:
            raise ValueError("it has no rows")
        rows, index = result.datasets["rows"], result.datasets["index"]
        if not rows.shape or index.shape != rows.shape[:1] or index.dtype != np.int64:
            raise ValueError("the datasets rows and index do not belong together")
        return RowsLayout(
            rows.shape[0], tuple(rows.shape[1:]), _torch_type(rows), rows.offset, index.offset, size_bytes=size
        )


# ------------------------------------------------------------------------------------------------ users' own files


def user_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The data sets of these names in any HDF5 file.

    One that lies in one piece is mapped: it stays on the disk, and changes of the array stay in memory.  Raises OSError
    or ValueError where the file cannot be read.
    """
    result: dict[str, np.ndarray] = {}
    with h5py.File(path, "r", locking=False) as file:
        for name in names:
            data = file.get(name)
            if not isinstance(data, h5py.Dataset):
                continue
            offset = data.id.get_offset()
            if offset is not None and data.dtype.isnative:
                result[name] = np.memmap(path, data.dtype, "c", offset, data.shape)
            else:
                result[name] = data[()]
    return result
