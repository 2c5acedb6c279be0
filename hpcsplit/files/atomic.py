"""Durable file operations: what is there after a crash is either the old or the new content, never a mixture.

Every byte goes to the disk through `write_all`, so nothing that the disk refuses is overlooked.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcsplit.errors import ConfigError, StoreError
from hpcsplit.files.nofollow import link, make_folder, open_file, opened, remove, replace

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # by a disk, of a program that is right
Buffer = bytes | bytearray | memoryview
_BLOCK_BYTES = 1 << 20
_COPY_BYTES = 1 << 30
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF}


def write_all(descriptor: int, content: Buffer, offset: int | None = None) -> None:
    """Write all of `content`, from `offset` bytes on or (None) where the file stands.  Raises OSError."""
    left = memoryview(content)
    left = left.cast("B") if left.nbytes else left
    while left.nbytes:
        written = os.write(descriptor, left) if offset is None else os.pwrite(descriptor, left, offset)
        if not written:
            raise OSError(errno.EIO, "the disk takes nothing more and gives no reason")
        left, offset = left[written:], None if offset is None else offset + written


def fsync_dir(folder: Path) -> None:
    """Make names created, renamed or removed in `folder` durable."""
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


def sha256_file(path: Path) -> str:
    """The SHA-256 of the file's content, 64 hexadecimal digits."""
    with open(path, "rb", opener=open_file) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes this user can still write on the file system of `path`."""
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def write_new(path: Path, content: Buffer) -> None:
    """Make a file with this content and wait until that is on the disk; its name is durable after `fsync_dir`.

    A file that is there is removed first, so give a name that nobody reads yet.  Raises OSError.
    """
    remove(path)
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        write_all(descriptor, content)
        os.fsync(descriptor)


def write_bytes(path: Path, content: Buffer) -> None:
    """Put `content` at `path` atomically and durably.  Raises OSError."""
    with _taking_the_place_of(path) as fresh:
        write_new(fresh, content)


def write_text(path: Path, text: str) -> None:
    """Put `text` (UTF-8) at `path` atomically and durably.  Raises OSError."""
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Add `text` (UTF-8) at the end of the file, new or not, durably; a crash may leave a part.  Raises OSError."""
    new = not path.exists()
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        write_all(descriptor, text.encode())
        os.fsync(descriptor)
    if new:
        fsync_dir(path.parent)


def make_folders(folder: Path) -> None:
    """Make the folder, and those above it that are missing, durably.  Raises OSError, ConfigError as `open_file`."""
    if not folder.parent.exists():
        make_folders(folder.parent)
    if make_folder(folder):
        fsync_dir(folder.parent)


def discard(path: Path) -> None:
    """Remove a file if it is there and the disk lets us: for what a failure has left, which is what must be said."""
    with suppress(OSError, ConfigError):
        remove(path)


def copy_file(src: Path, dst: Path) -> None:
    """Copy content and permissions to `dst` and wait until they are on the disk.

    The kernel copies (sharing blocks where the file system can); where it cannot, the bytes pass through this process.
    An existing `dst` is overwritten in place, so `dst` is a file that nobody reads yet.  Raises OSError.
    """
    with opened(src, os.O_RDONLY) as source:
        mode = os.fstat(source).st_mode & 0o777
        with opened(dst, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as copy:
            _kernel_copy(source, copy)
            while block := os.read(source, _BLOCK_BYTES):  # whatever the kernel left, from where it stopped
                write_all(copy, block)
            os.fsync(copy)


def _kernel_copy(source: int, copy: int) -> None:
    try:
        while os.copy_file_range(source, copy, _COPY_BYTES):
            pass
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise


def replace_symlink(path: Path, target: str | Path) -> None:
    """Let `path` point to `target` atomically, whether or not it exists.  Raises OSError."""
    with _taking_the_place_of(path) as fresh:
        remove(fresh)
        link(fresh, target)


@contextmanager
def _taking_the_place_of(path: Path) -> Iterator[Path]:
    """A name beside `path` for what the block makes, which then takes the place of `path`, durably."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with gone_on_failure(fresh):
        yield fresh
        replace(fresh, path)
    fsync_dir(path.parent)


@contextmanager
def gone_on_failure(path: Path) -> Iterator[None]:
    """Discard the file when the block fails."""
    try:
        yield
    except BaseException:
        discard(path)
        raise


# ------------------------------------------------------------------------------------------------ what to say


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """What a disk refuses within the block becomes a StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise write_failure(error.filename or "a file", error) from error


def write_in_words(path: Path, text: str) -> None:
    """`write_text`, whose failure is a StoreError that names the path."""
    try:
        write_text(path, text)
    except OSError as error:
        raise write_failure(path, error) from None


def write_failure(path: Path | str, error: OSError, needed: int | None = None) -> StoreError:
    """The failure of a write of `needed` bytes (None: not known) to `path`: why, and what to do."""
    limit, size = resource.getrlimit(resource.RLIMIT_FSIZE)[0], "" if needed is None else f" ({needed} bytes)"
    try:
        free = f" ({free_bytes(Path(path).parent)} bytes are free)"
    except OSError:
        free = ""
    larger = "free space or choose a folder on a larger disk"
    unlimited = "the file would be too large for its file system; choose a folder on another one"
    limited = f"the limit on the size of a file is {limit} bytes; raise it (ulimit -f)"
    why = {
        errno.ENOSPC: f"no space left{free}; {larger}",
        errno.EDQUOT: f"the quota is used up{free}; {larger}",
        errno.EFBIG: unlimited if limit == resource.RLIM_INFINITY else limited,
    }.get(error.errno or 0, f"{error.strerror or error}; check the disk")
    return StoreError(f"{path} cannot be written{size}: {why}, then start the same command again")
