"""Durable file operations: what is there after a crash is either the old or the new content, never a mixture."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

from hpcsplit.files.nofollow import link, open_file, remove, replace

_BLOCK_BYTES = 1 << 20
_COPY_BYTES = 1 << 30
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF}


def fsync_file(path: Path) -> None:
    """Wait until the content of the file is on the disk."""
    descriptor = open_file(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_dir(folder: Path) -> None:
    """Make names created, renamed or removed in `folder` durable."""
    descriptor = open_file(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The SHA-256 of the file's content, 64 hexadecimal digits."""
    with open(path, "rb", opener=open_file) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes this user can still write on the file system of `path`."""
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def copy_file(src: Path, dst: Path) -> None:
    """Copy content and permissions to `dst` and wait until they are on the disk.

    The kernel copies (sharing blocks where the file system can); where it cannot, the bytes pass through this process.
    An existing `dst` is overwritten in place, so `dst` is a file that nobody reads yet.  Raises OSError.
    """
    with open(src, "rb", buffering=0, opener=open_file) as source:
        mode = os.fstat(source.fileno()).st_mode & 0o777
        with open(open_file(dst, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb", buffering=0) as copy:
            _kernel_copy(source.fileno(), copy.fileno())
            shutil.copyfileobj(source, copy, _BLOCK_BYTES)  # whatever the kernel left, from where it stopped
            os.fsync(copy.fileno())


def _kernel_copy(source: int, copy: int) -> None:
    try:
        while os.copy_file_range(source, copy, _COPY_BYTES):
            pass
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise


def write_text(path: Path, text: str) -> None:
    """Put `text` (UTF-8) at `path` atomically and durably.  Raises OSError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Put `content` at `path` atomically and durably.  Raises OSError."""
    fresh = _beside(path)
    remove(fresh)
    try:
        with open(fresh, "xb", opener=open_file) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(fresh, path)
    finally:
        remove(fresh)
    fsync_dir(path.parent)


def replace_symlink(path: Path, target: str | Path) -> None:
    """Let `path` point to `target` atomically, whether or not it exists.  Raises OSError."""
    fresh = _beside(path)
    remove(fresh)
    try:
        link(fresh, target)
        replace(fresh, path)
    finally:
        remove(fresh)
    fsync_dir(path.parent)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
