"""What a power loss would leave of a folder, by what has been fsynced until then."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tree = dict[str, bytes | str]  # relative path -> content of a file, target of a link
Rename = Callable[[Path, Path], None]


class Disk:
    """Sees what the program fsyncs and renames below `root`; what is there at first has been on the disk for long.

    Content counts as it was when its file was last fsynced.  `late` believes in no change of names before their folder
    has been fsynced, `early` in all of them at once: a file system may do either.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.before_rename: Rename = lambda source, target: None
        self.after_rename: Rename = lambda source, target: None
        self._contents: dict[int, bytes] = {}  # by inode
        self._names: dict[int, dict[str, tuple[int, str | None]]] = {}  # of a folder: name -> inode, target of a link
        self._held: list[int] = []  # an inode in use is not given to another file
        for path in (root, *root.rglob("*")):
            if path.is_dir() or path.is_file():
                self._keep(os.open(path, os.O_RDONLY))
        self._fsync, self._rename = os.fsync, os.rename
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "rename", self.rename)
        monkeypatch.setattr(os, "replace", self.rename)

    def close(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        self._keep(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY))

    def rename(self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        whole = _whole(source, src_dir_fd), _whole(target, dst_dir_fd)
        self.before_rename(*whole)
        self._rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        self.after_rename(*whole)

    def _keep(self, descriptor: int) -> None:
        self._held.append(descriptor)
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            entries = list(os.scandir(descriptor))
            self._names[state.st_ino] = {
                entry.name: (entry.inode(), os.readlink(entry.name, dir_fd=descriptor) if entry.is_symlink() else None)
                for entry in entries
            }
        elif stat.S_ISREG(state.st_mode):
            self._contents[state.st_ino] = os.pread(descriptor, state.st_size, 0)

    def names(self, folder: Path) -> set[str]:
        """The names in a folder when it was last fsynced."""
        return set(self._names.get(folder.stat().st_ino, {}))

    def late(self) -> Tree:
        tree: Tree = {}

        def visit(inode: int, place: str) -> None:
            for name, (child, target) in self._names.get(inode, {}).items():
                if target is not None:
                    tree[place + name] = target
                elif child in self._contents:
                    tree[place + name] = self._contents[child]
                else:
                    visit(child, f"{place}{name}/")

        visit(self.root.stat().st_ino, "")
        return tree

    def early(self) -> Tree:
        return {
            name: content if isinstance(content, str) else self._contents.get((self.root / name).stat().st_ino, b"")
            for name, content in self.now().items()
        }

    def now(self) -> Tree:
        """What is there without a power loss."""
        return {
            str(path.relative_to(self.root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_symlink() or path.is_file()
        }


def _whole(name: Any, folder: int | None) -> Path:
    return Path(name) if folder is None else Path(os.readlink(f"/proc/self/fd/{folder}"), name)
