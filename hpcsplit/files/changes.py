"""A file whose changes are made in memory first."""

from __future__ import annotations

import io
import os
from typing import Any

from hpcsplit.files.atomic import write_all


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
