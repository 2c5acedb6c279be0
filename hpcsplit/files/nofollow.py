"""The one way to what lies in a run directory: no link is followed, and only regular files and folders are opened.

A name in a folder that others have made, or may write, can be anything: a link to a file of the reader's, a pipe that
never answers, a second name of a file elsewhere.  So each part of a path is opened from the folder before it, never
through a link, and what has been opened is looked at before a byte of it is read or written.  Whoever takes a folder
from a user resolves it first (`without_links`); from there on every link is refused.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hpcsplit.errors import ConfigError, LaunchError

MOST_BYTES = 1 << 30  # read of a text file

_ALWAYS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PART = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def without_links(path: Path) -> Path:
    """A way to the same place that leads through no link: the path itself where it has none."""
    real = Path(os.path.realpath(path))
    return path if real == Path(os.path.abspath(path)) else real


def open_file(path: Path | str, flags: int, mode: int = 0o666) -> int:
    """As `os.open`: a descriptor of a regular file, or with os.O_DIRECTORY of a folder; the `opener` of `open`, too.

    Raises:
        ConfigError: it is something else, or a part of its path is a link; or it is written but has a second name
            (a hard link) or belongs to somebody else than this user and the folder's owner; or it is read, has a
            second name, and does not belong to the folder's owner.
        LaunchError: too many files are open.
        OSError: as `os.open`.
    """
    path = Path(path)
    with _parent(path) as (folder, name):
        try:
            descriptor = os.open(name, flags & ~os.O_TRUNC | _ALWAYS, mode, dir_fd=folder)
        except OSError as error:
            _refuse_others(path, folder, bool(flags & os.O_DIRECTORY))
            raise _of(path, error) from None
        try:
            if not flags & os.O_DIRECTORY:
                _check(path, os.fstat(descriptor), os.fstat(folder).st_uid, bool(flags & (os.O_WRONLY | os.O_RDWR)))
            if flags & os.O_TRUNC:  # not before it has been looked at
                os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o666) -> Iterator[int]:
    """A descriptor by `open_file`, closed in the end; an OSError within the block names the file."""
    try:
        descriptor = open_file(path, flags, mode)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def read_bytes(path: Path | str) -> bytes:
    """The whole content of a file of at most MOST_BYTES.  Raises as `open_file`; ConfigError where it is larger."""
    with open(path, "rb", opener=open_file) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise ConfigError(f"{path} has {size} bytes, at most {MOST_BYTES} are read; remove it or put it elsewhere")
        return file.read()


def read_text(path: Path | str) -> str:
    """The content as text; bytes that are no UTF-8 become U+FFFD.  Raises as `read_bytes`."""
    return read_bytes(path).decode("utf-8", "replace")


def state(path: Path | str) -> os.stat_result | None:
    """`os.lstat` of it, None where it is absent.  ConfigError where a folder above it is a link."""
    try:
        with _parent(Path(path)) as (folder, name):
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def names(folder: Path) -> list[str]:
    """What is in a folder, sorted; nothing where it is absent.  Raises as `open_file`."""
    with suppress(FileNotFoundError), opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        return sorted(os.listdir(descriptor))
    return []


def make_folder(path: Path) -> bool:
    """Make a folder in one that is there; whether it was new.  ConfigError where something else has its name."""
    with _parent(path) as (folder, name), _named(path):
        try:
            os.mkdir(name, dir_fd=folder)
        except FileExistsError:
            _refuse_others(path, folder, True)
            return False
    return True


def remove(path: Path) -> None:
    """Remove a file or a link, not what it leads to; fine where it is absent.  OSError for a folder."""
    with suppress(FileNotFoundError), _parent(path) as (folder, name):
        os.unlink(name, dir_fd=folder)


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, a file, or a link, but nothing that a link leads to."""
    result = state(path)
    if result is None or not stat.S_ISDIR(result.st_mode):
        return remove(path)
    with _parent(path) as (folder, name):
        shutil.rmtree(name, dir_fd=folder)


def replace(source: Path, target: Path) -> None:
    """As `os.replace`."""
    with _parent(source) as (there, name), _parent(target) as (here, new_name), _named(target):
        os.replace(name, new_name, src_dir_fd=there, dst_dir_fd=here)


def link(path: Path, target: str | Path) -> None:
    """As `os.symlink`: let the new name `path` point to `target`."""
    with _parent(path) as (folder, name), _named(path):
        os.symlink(target, name, dir_fd=folder)


@contextmanager
def _parent(path: Path) -> Iterator[tuple[int, str]]:
    """A descriptor of the folder that `path` lies in, and the name there."""
    *parts, name = path.parts if path.name else (*path.parts, ".")
    absolute = path.is_absolute()
    start = parts[0] if absolute else "."
    with _named(start):
        folder = os.open(start, _PART)
    try:
        for count, part in enumerate(parts[1:] if absolute else parts, 1 + absolute):
            try:
                inner = os.open(part, _PART, dir_fd=folder)
            except OSError as error:
                place = Path(*parts[:count])
                _refuse_link(place, folder)
                raise _of(place, error) from None
            os.close(folder)
            folder = inner
        yield folder, name
    finally:
        os.close(folder)


def _refuse_others(path: Path, folder: int, wants_folder: bool) -> None:
    """ConfigError where `path`, in the open `folder`, is there and not a file, or not a folder, as wanted."""
    _refuse_link(path, folder)
    with suppress(OSError):
        _check_kind(path, os.stat(path.name or ".", dir_fd=folder, follow_symlinks=False), wants_folder)


def _refuse_link(path: Path, folder: int) -> None:
    try:
        target = os.readlink(path.name or ".", dir_fd=folder)
    except OSError:  # absent, or no link
        return
    raise ConfigError(f"{path} is a link to {target}, and links in a run directory are not followed; remove it")


def _check_kind(path: Path, result: os.stat_result, wants_folder: bool) -> None:
    kind = stat.S_IFMT(result.st_mode)
    if kind != (stat.S_IFDIR if wants_folder else stat.S_IFREG):
        wanted = "folder; choose another one" if wants_folder else "regular file; remove it"
        raise ConfigError(f"{path} is {_KINDS.get(kind, 'something else')}, no {wanted}")


def _check(path: Path, result: os.stat_result, folders_owner: int, writes: bool) -> None:
    """ConfigError where an open file may not be read, or written."""
    _check_kind(path, result, False)
    if writes and result.st_uid not in (os.geteuid(), folders_owner):
        raise ConfigError(
            f"{path} belongs to uid {result.st_uid}, this run to uid {os.geteuid()}; remove it, or take another folder"
        )
    if result.st_nlink > 1 and (writes or result.st_uid != folders_owner):
        raise ConfigError(
            f"{path} has {result.st_nlink} names (hard links), so it is another file, too; put a copy in its place"
        )


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """An OSError within the block is one of this path."""
    try:
        yield
    except OSError as error:
        raise _of(path, error) from None


def _of(path: Path | str, error: OSError) -> OSError | LaunchError:
    """The error with the whole path; what is no fault of this path is no OSError, which might pass for one."""
    return too_many(error) or OSError(error.errno, error.strerror, str(path))


def raise_limit() -> int:
    """Raise this process's limit of open files, which many systems set low for old programs' sake, as far as it may go;
    the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # beyond what the kernel lets any process have
        return soft
    return hard


def too_many(error: BaseException) -> LaunchError | None:
    """What to say when the system refused to open one more file, as this error or as the reason for it; else None.

    It is never a fault of the file that was to be opened, so nothing may go on as if that were damaged or absent.
    """
    reason: BaseException | None = error
    seen: set[int] = set()
    while reason is not None and id(reason) not in seen:  # causes and contexts can make a circle
        seen.add(id(reason))
        if isinstance(reason, OSError) and reason.errno == errno.EMFILE:
            return LaunchError(
                f"this process may have only {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files open; raise the "
                "hard limit where it is started (ulimit -Hn, or LimitNOFILE of the batch system), or start fewer "
                "stages in a process"
            )
        if isinstance(reason, OSError) and reason.errno == errno.ENFILE:
            return LaunchError(
                "all processes of this machine together have as many files open as it allows; raise fs.file-max "
                "(sysctl), or start fewer processes on it"
            )
        reason = reason.__cause__ or reason.__context__
    return None
