"""Node-local scratch: where a node may keep what a job writes fast and need not keep, and a folder of one's own there.

Sites differ in where it is, so the places are tried in a fixed order: the caller's own, $SLURM_TMPDIR (the Alliance's
clusters and others), $LOCAL_SCRATCH (CSC), /mnt/bb/$USER (OLCF's burst buffer), $TMPDIR, /tmp.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcsplit.errors import StoreError
from hpcsplit.files.atomic import free_bytes

BURST_BUFFER = Path("/mnt/bb")
LAST_RESORT = Path("/tmp")
MEMORY = ("tmpfs", "ramfs")
NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "pvfs2", "panfs", "wekafs", "afs", "cifs", "smb3", "9p")

_GB = 1e9


@dataclass(frozen=True)
class Mount:
    """The file system under a folder: where it is mounted, its type (ext4, tmpfs, lustre …) and its device."""

    point: Path
    kind: str
    device: str

    @property
    def in_memory(self) -> bool:
        return self.kind in MEMORY

    @property
    def shared(self) -> bool:
        """Whether other nodes have it too, so that its speed is not this node's alone."""
        return self.kind in NETWORK


@dataclass(frozen=True)
class Candidate:
    """A place for scratch files: who named it, why it cannot be used ("" when it can), its room and file system."""

    path: Path
    origin: str
    obstacle: str
    free_bytes: int
    mount: Mount

    def __str__(self) -> str:
        named = "" if self.origin == str(self.path) else f" ({self.origin})"
        return f"{self.path}{named}: {self.obstacle or f'{self.free_bytes / _GB:.2f} GB free'}"


def candidates(first: Path | None = None) -> list[Candidate]:
    """The places for scratch files in the order in which they are tried; `first` goes before all.

    A variable that is not set and a burst buffer that the site does not have are left out, and so is a place that
    another name has brought up already.
    """
    result: dict[Path, Candidate] = {}
    for path, origin in _named(first):
        place = Path(os.path.realpath(path))
        if place not in result:
            result[place] = look_at(path, origin)
    return list(result.values())


def look_at(path: Path, origin: str) -> Candidate:
    """What there is to know about one place."""
    obstacle, free, mount = "", 0, mount_of(path)
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            obstacle = "is no folder"
        elif not os.access(path, os.W_OK | os.X_OK):
            obstacle = "cannot be written"
        free = free_bytes(path)
    except FileNotFoundError:
        obstacle = "does not exist"
    except OSError as error:
        obstacle = f"cannot be used: {error.strerror}"
    if mount.in_memory:
        free = min(free, memory_available_bytes())
    return Candidate(path, origin, obstacle, free, mount)


def choose(name: str, needed_bytes: int, first: Path | None = None) -> Path:
    """A folder `name`, mode 0700, in the first place that has room for `needed_bytes`.

    A place that holds this folder already goes before the others, so that a continued run finds its files; what they
    take counts as room.  Ranks of one node share the folder: `needed_bytes` is what all of them need together.
    StoreError where no place has room; it lists each with its free bytes.
    """
    assert name == Path(name).name not in ("", ".."), f"{name!r} must be the name of a folder"
    places = sorted(candidates(first), key=lambda place: not _mine(place.path / name))
    refused = []
    for place in places:
        held = held_bytes(place.path / name) if _mine(place.path / name) else 0
        if place.obstacle:
            refused.append(str(place))
        elif place.free_bytes + held < needed_bytes:
            refused.append(f"{place} ({place.free_bytes} bytes)" + (f" beside its own {held} bytes" if held else ""))
        elif obstacle := _take(place.path / name):
            refused.append(f"{place.path / name} {obstacle}")
        else:
            return place.path / name
    raise StoreError(
        f"no scratch place has room for {needed_bytes} bytes ({needed_bytes / _GB:.2f} GB): {'; '.join(refused)}. "
        "Ask the batch system for more local disk, free some, name a folder in store.path, or make the rows smaller "
        "(store.dtype, more nodes)"
    )


def held_bytes(folder: Path) -> int:
    """Bytes that the files right in the folder take on the disk; 0 when it is absent."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
    except OSError:
        return 0


def mount_of(path: Path, table: str | None = None) -> Mount:
    """The mount that the path (or, while it is absent, the nearest folder above it) lies on; needs Linux's /proc."""
    if table is None:
        try:
            table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return Mount(Path("/"), "unknown", "unknown")
    place, best = Path(os.path.realpath(path)), Mount(Path("/"), "unknown", "unknown")
    for line in table.splitlines():
        front, _, back = line.partition(" - ")
        point, (kind, device) = Path(_unescaped(front.split()[4])), back.split()[:2]
        if place.is_relative_to(point) and len(point.parts) >= len(best.point.parts):  # a later mount covers an earlier
            best = Mount(point, kind, _unescaped(device))
    return best


def memory_available_bytes() -> int:
    """What the node can still give without swapping: a file system in memory has no more room than this."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _named(first: Path | None) -> Sequence[tuple[Path, str]]:
    named = [(first, "asked for")] if first else []
    named += [(Path(os.environ[v]), f"${v}") for v in ("SLURM_TMPDIR", "LOCAL_SCRATCH") if os.environ.get(v)]
    if BURST_BUFFER.is_dir():
        named.append((BURST_BUFFER / _user(), f"{BURST_BUFFER}/$USER"))
    if os.environ.get("TMPDIR"):
        named.append((Path(os.environ["TMPDIR"]), "$TMPDIR"))
    return [*named, (LAST_RESORT, str(LAST_RESORT))]


def _user() -> str:
    try:
        return os.environ.get("USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # no entry for this user, as in some containers
        return str(os.getuid())


def _mine(folder: Path) -> bool:
    """Whether it is a folder, not a link to one, and belongs to this user."""
    try:
        state = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid()


def _take(folder: Path) -> str:
    """Make the folder for this user alone; why that cannot be, or ""."""
    try:
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            if not _mine(folder):
                return "is there already and is not yours"
            os.chmod(folder, 0o700)
    except OSError as error:
        return f"cannot be made: {error.strerror}"
    return ""


def _unescaped(word: str) -> str:
    """The kernel writes blanks in a path as \\040."""
    return re.sub(r"\\(040|011|012|134)", lambda code: chr(int(code[1], 8)), word)
