"""What an HDF5 file holds, read without the library, which does whatever a file says.

A run directory may be a stranger's, and its checksums fit whatever is in it.  The library follows links to other files,
loads plug-ins for filters, expands what was compressed, and on a crafted file crashes or never comes back.  So this
reads the few structures that hdf5.py writes and refuses all others: superblock 0, groups as symbol tables, object
headers 1, contiguous data, numbers of the types given, text of fixed length, attributes of one value.  Nothing is read
twice, outside of the file, or in larger amounts than the limits below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, NamedTuple

import numpy as np

MOST_OBJECTS = 200_000  # groups and tensors; a network of 10,000 layers with its optimizer has half of them
MOST_MESSAGES = 2_000_000
MOST_ATTRIBUTES = 1000  # of one object
MOST_BYTES = 1 << 28  # of all headers
MOST_DEPTH = 32
MOST_DIMENSIONS = 32
MOST_NAME = 4096  # bytes

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = (1 << 64) - 1
_SUPERBLOCK = Struct("<8s8B2H I 4Q 2Q I 20x")
_HEADER = Struct("<BxHII4x")
_MESSAGE = Struct("<HHB3x")
_TWO = Struct("<QQ")
_HEAP = Struct("<4sB3xQ8xQ")
_TREE = Struct("<4sBBH16x")
_LEAF = Struct("<4sBxH")
_ENTRY = Struct("<QQI20x")
_ATTRIBUTE = Struct("<BBHHH")

_DATASPACE, _DATATYPE, _LAYOUT, _ATTR, _MORE, _GROUP = 0x01, 0x03, 0x08, 0x0C, 0x10, 0x11
_WITHOUT_EFFECT = {0x00, 0x04, 0x05, 0x12}  # padding, fill values, time of modification
_REFUSED = {
    0x02: "links of a newer kind",
    0x06: "links of a newer kind",
    0x07: "data in another file",
    0x0B: "filters",
    0x15: "attributes of a newer kind",
}
_TEXT, _VARIABLE = 3, 9  # classes of types

Value = int | float | complex | bool | bytes


class VariableText(NamedTuple):
    """An attribute whose value lies in the global heap, where nobody looks."""


VARIABLE_TEXT = VariableText()


@dataclass(frozen=True)
class StoredArray:
    """An array in the file: shape, type, its attributes, and where its bytes begin and how many there are."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    size: int
    attributes: Mapping[str, Value | VariableText]


@dataclass(frozen=True)
class Contents:
    """The arrays of a file by their path ("group/name"), and the attributes of the file."""

    datasets: Mapping[str, StoredArray]
    attributes: Mapping[str, Value | VariableText]


def parse(read: Callable[[int, int], bytes], size: int, types: Mapping[bytes, np.dtype[Any]]) -> Contents:
    """What the file of `size` bytes holds; no array is read.

    `read` (offset, bytes) gives the bytes, and is called only for what lies inside the file; `types` are the numbers
    that may be there, by their description in the file.  ValueError where it is no such file, or damaged, or has
    anything else in it.
    """
    return _FileReader(read, size, types).contents()


class _FileReader:
    def __init__(self, read: Callable[[int, int], bytes], size: int, types: Mapping[bytes, np.dtype[Any]]) -> None:
        self._read, self._size, self._types = read, size, types
        self._bytes_left, self._messages_left = MOST_BYTES, MOST_MESSAGES
        self._seen: set[int] = set()
        self._objects = 0

    def contents(self) -> Contents:
        fields = _SUPERBLOCK.unpack(self._bytes(0, _SUPERBLOCK.size))
        signature, versions, base, root = fields[0], fields[1:4] + fields[5:6], fields[12], fields[17]
        if signature != _SIGNATURE:
            raise ValueError("it does not begin as an HDF5 file")
        if any(versions) or fields[6:8] != (8, 8) or base:
            raise ValueError("its superblock is of another kind than this program writes")
        if fields[14] > self._size:
            raise ValueError(f"it is cut off: {self._size} bytes, {fields[14]} expected")
        datasets: dict[str, StoredArray] = {}
        attributes = self._object(root, "", 0, datasets)
        end = 0
        for dataset in sorted((d for d in datasets.values() if d.size), key=lambda d: d.offset):
            if dataset.offset < end:
                raise ValueError("two of its arrays overlap")
            end = dataset.offset + dataset.size
        return Contents(datasets, attributes)

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            raise ValueError(f"it is cut off or damaged: something lies at {offset + size}, it has {self._size} bytes")
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError(f"its headers have more than {MOST_BYTES} bytes")
        piece = self._read(offset, size)
        if len(piece) != size:
            raise ValueError("it has become shorter")
        return piece

    def _once(self, offset: int) -> int:
        if offset in self._seen:
            raise ValueError("two things in it lie at the same place, as in a circle of links")
        self._seen.add(offset)
        return offset

    def _object(self, address: int, path: str, depth: int, datasets: dict[str, StoredArray]) -> dict[str, Any]:
        """Put the arrays of the object at `address` into `datasets`; its own attributes."""
        self._objects += 1
        if self._objects > MOST_OBJECTS or depth > MOST_DEPTH:
            raise ValueError(f"it has more than {MOST_OBJECTS} objects, or groups in groups over {MOST_DEPTH} levels")
        attributes: dict[str, Any] = {}
        facts: dict[int, bytes] = {}
        for kind, data in self._messages(address):
            if kind == _ATTR:
                name, value = self._attribute(data)
                if name in attributes or len(attributes) >= MOST_ATTRIBUTES:
                    raise ValueError(f"an object in it has more than {MOST_ATTRIBUTES} attributes, or one twice")
                attributes[name] = value
            elif kind in (_DATASPACE, _DATATYPE, _LAYOUT, _GROUP) and kind not in facts:
                facts[kind] = data
            elif kind not in _WITHOUT_EFFECT:
                raise ValueError(f"it has {_REFUSED.get(kind, f'a header message of kind {kind}')}, which are not read")
        if facts.keys() == {_GROUP}:
            for name, child in self._links(*_fields(_TWO, facts[_GROUP])):
                inside = f"{path}/{name}" if path else name
                if inside in datasets:
                    raise ValueError(f"it has {inside!r} twice")
                self._object(child, inside, depth + 1, datasets)
        elif path and facts.keys() == {_DATASPACE, _DATATYPE, _LAYOUT}:
            datasets[path] = self._dataset(facts, attributes)
        else:
            raise ValueError("something in it is neither a group nor an array")
        return attributes

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        version, left, _, size = _HEADER.unpack(self._bytes(self._once(address), _HEADER.size))
        if version != 1:
            raise ValueError("an object header in it is of a kind that this program does not write")
        blocks = [(address + _HEADER.size, size)]
        while blocks and left:
            block = self._bytes(*blocks.pop(0))
            place = 0
            while left and place + _MESSAGE.size <= len(block):
                kind, size, flags = _MESSAGE.unpack_from(block, place)
                data = block[place + _MESSAGE.size : place + _MESSAGE.size + size]
                if len(data) < size:
                    raise ValueError("an object header in it is cut off")
                place, left, self._messages_left = place + _MESSAGE.size + size, left - 1, self._messages_left - 1
                if self._messages_left < 0:
                    raise ValueError(f"its headers have more than {MOST_MESSAGES} messages")
                if flags & 2:
                    raise ValueError("it has types that are shared, which are not read")
                if kind == _MORE:
                    offset, length = _fields(_TWO, data)
                    blocks.append((self._once(offset), length))
                else:
                    yield kind, data

    def _links(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        """(name, address of the object) of everything in a group."""
        signature, version, size, start = _HEAP.unpack(self._bytes(self._once(heap), _HEAP.size))
        if (signature, version) != (b"HEAP", 0):
            raise ValueError("the names of a group in it are damaged")
        names = self._bytes(start, size)
        for offset, address in self._entries(tree, None):
            end = names.find(b"\0", offset, offset + MOST_NAME + 1)
            if not 0 <= offset < end or b"/" in names[offset:end]:
                raise ValueError("a name in it is damaged")
            yield names[offset:end].decode(), address

    def _entries(self, tree: int, level: int | None) -> Iterator[tuple[int, int]]:
        signature, kind, result, used = _TREE.unpack(self._bytes(self._once(tree), _TREE.size))
        if (signature, kind) != (b"TREE", 0) or result > 8 or level not in (None, result):
            raise ValueError("the index of a group in it is damaged")
        keys = self._bytes(tree + _TREE.size, 16 * used)
        for (child,) in Struct("<8xQ").iter_unpack(keys):
            yield from self._entries(child, result - 1) if result else self._leaf(child)

    def _leaf(self, address: int) -> Iterator[tuple[int, int]]:
        signature, version, used = _LEAF.unpack(self._bytes(self._once(address), _LEAF.size))
        if (signature, version) != (b"SNOD", 1):
            raise ValueError("the index of a group in it is damaged")
        for name, child, cached in _ENTRY.iter_unpack(self._bytes(address + _LEAF.size, _ENTRY.size * used)):
            if cached > 1:
                raise ValueError("it has links by name, which are not followed")
            yield name, child

    def _dataset(self, facts: Mapping[int, bytes], attributes: Mapping[str, Any]) -> StoredArray:
        shape, dtype, layout = _shape(facts[_DATASPACE]), self._number(facts[_DATATYPE]), facts[_LAYOUT]
        if dtype is None:
            raise ValueError("it has an array of a type that this program does not write")
        if layout[:2] != b"\x03\x01":
            raise ValueError("it has an array in pieces, compressed or in other files, which are not read")
        offset, size = _fields(_TWO, layout[2:])
        if size != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} in it has {size} bytes")
        if size and offset + size > self._size:
            raise ValueError(f"it is cut off: {self._size} bytes, {offset + size} expected")
        return StoredArray(shape, dtype, 0 if offset == _UNDEFINED else offset, size, attributes)

    def _number(self, described: bytes) -> np.dtype[Any] | None:
        return next(
            (t for known, t in self._types.items() if described.startswith(known) and not any(described[len(known) :])),
            None,
        )

    def _attribute(self, data: bytes) -> tuple[str, Value | VariableText]:
        version, flags, *sizes = _fields(_ATTRIBUTE, data)
        if version not in (1, 3) or (version == 3 and flags):
            raise ValueError("it has an attribute of a kind that this program does not write")
        parts, place = [], _ATTRIBUTE.size + (version == 3)
        for size in sizes:
            parts.append(data[place : place + size])
            place += size if version == 3 else -(-size // 8) * 8
        raw_name, described, space = parts
        if _shape(space):
            raise ValueError("it has an attribute of several values, which are not read")
        name, value = raw_name.rstrip(b"\0").decode(), data[place:]
        kind, size = described[0] & 15 if described else -1, int.from_bytes(described[4:8], "little")
        if kind == _VARIABLE:
            return name, VARIABLE_TEXT
        dtype = self._number(described)
        if dtype is None and kind != _TEXT:
            raise ValueError(f"its attribute {name!r} is of a type that this program does not write")
        size = size if dtype is None else dtype.itemsize
        if size > len(value):
            raise ValueError(f"its attribute {name!r} is cut off")
        return name, value[:size].rstrip(b"\0") if dtype is None else np.frombuffer(value, dtype, 1)[0].item()


def _fields(form: Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < form.size:
        raise ValueError("a header in it is cut off")
    return form.unpack_from(data)


def _shape(space: bytes) -> tuple[int, ...]:
    """Lengths of a dataspace, of version 1 or 2."""
    head = {1: 8, 2: 4}.get(space[0]) if len(space) >= 4 else None
    if head is None or space[1] > MOST_DIMENSIONS or len(space) < head + 8 * space[1] or (head == 4 and space[3] > 1):
        raise ValueError("the shape of something in it is damaged")
    return tuple(int.from_bytes(space[k : k + 8], "little") for k in range(head, head + 8 * space[1], 8))
