"""Where the files of a data set lie, as torchvision or a browser has left them: unpacked, .gz, or one .tar.gz."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from hpcsplit.data import decode
from hpcsplit.data.catalog import SPECS, Layout, plain

_PACKED = (".zip", ".gz", ".tgz", ".tar", ".xz", ".bz2", ".7z", ".rar", ".part", ".crdownload")


class Files:
    """The files of a data set that is there, wherever that is.  Each is read once."""

    def __init__(self, layout: Layout, root: Path) -> None:
        self.layout, self.root = layout, root
        self.archive = next((path for path in _archives(layout, root) if path.is_file()), None)
        there = {folder: [bool(_form(folder, name)) for name in layout.names] for folder in _folders(layout, root)}
        whole = next((folder for folder, result in there.items() if all(result)), None)
        self.complete = bool(whole or self.archive)  # all are there, by their names
        self.folder = whole or (None if self.archive else next((f for f, result in there.items() if any(result)), None))
        self.place = self.folder or self.archive  # that they are read from; None where there is neither
        self._members: dict[str, bytes] = {}

    def read(self, name: str, md5: str | None = None) -> bytes:
        """The content of the file published as `name`, unpacked.  Raises OSError or ValueError (see decode.content)."""
        if not self.folder:
            if not self._members and self.archive:
                self._members = _unpacked(self.archive, self.layout)
            if name not in self._members:
                raise ValueError(f"{self.archive} has no {self.layout.folder}/{name}")
            return decode.published(self._members.pop(name), name, md5)
        path = _form(self.folder, name)
        if not path:
            raise ValueError(f"{self.folder / name} is not there, or no file")
        if path.suffix == ".gz":
            return decode.published(gunzip(path), name, md5)
        return decode.content(path, md5)

    def others(self) -> list[str]:
        """Names of packed files beside the usual place that are not understood, for people."""
        result: list[str] = []
        for folder in dict.fromkeys((*_folders(self.layout, self.root), self.root)):
            try:
                result += sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PACKED)
            except OSError:
                continue
        return result


def _folders(layout: Layout, root: Path) -> Iterator[Path]:
    """Where the files may lie, the usual place first."""
    yield root / layout.folder
    yield root / layout.kind
    own = {plain(part) for part in (root.absolute().name, root.absolute().parent.name)}
    layouts = [spec.layout for spec in SPECS.values() if spec.layout]
    others = {plain(other.kind) for other in layouts if layout.family and other.family == layout.family}
    if not own & (others - {plain(layout.kind)}):
        yield root
        yield root / "raw"


def _archives(layout: Layout, root: Path) -> Iterator[Path]:
    """Where all of it may lie in one file."""
    places = (root, root / layout.kind, root / layout.folder, root.absolute().parent)
    stem = layout.archive.removesuffix(".tar.gz")
    yield from (place / f"{stem}{suffix}" for place in places for suffix in (".tar.gz", ".tgz", ".tar") if stem)


def gunzip(path: Path) -> bytes:
    """The content of a .gz file.  Raises OSError, or ValueError where it is damaged or holds more than any set has."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(decode.content(path))) as file:
            result = file.read(decode.MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name} cannot be unpacked: {error}") from None
    if len(result) > decode.MOST_BYTES:
        raise ValueError(f"{path.name} holds more than {decode.MOST_BYTES} bytes")
    return result


def _unpacked(archive: Path, layout: Layout) -> dict[str, bytes]:
    """The files of a layout by name; nothing is written anywhere."""
    result: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(decode.content(archive))) as tar:
            for member in tar:
                if member.offset_data + member.size > decode.MOST_BYTES:
                    raise ValueError(f"{archive.name} holds more than {decode.MOST_BYTES} bytes")
                path = PurePosixPath(member.name)
                wanted = path.parent.name == layout.folder and path.name in layout.names
                if wanted and member.isreg() and (file := tar.extractfile(member)):
                    result[path.name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive.name} cannot be unpacked: {error}") from None
    return result


def _form(folder: Path, name: str) -> Path | None:
    """The file as it lies in the folder: under its name, with a point before idx, or either as .gz."""
    plain: Sequence[str] = (name, name.replace("-idx", ".idx"))
    forms = (folder / f"{stem}{suffix}" for suffix in ("", ".gz") for stem in plain)
    return next((path for path in forms if path.is_file()), None)
