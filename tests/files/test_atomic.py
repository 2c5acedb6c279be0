from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from hpcsplit.files import atomic


def test_write_text_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    atomic.write_text(path, "a much longer first text")
    atomic.write_text(path, "κ\n")
    assert path.read_bytes() == "κ\n".encode()
    assert os.listdir(tmp_path) == ["latest.json"]


def test_a_failed_write_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest.json"
    atomic.write_text(path, "old")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="broken disk"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["latest.json"]


@pytest.mark.parametrize("kernel", [True, False])
def test_copy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    def absent(*_: object) -> int:
        raise OSError(errno.EXDEV, "not on this file system")

    if not kernel:
        monkeypatch.setattr(os, "copy_file_range", absent)
    content = os.urandom(3 << 20)
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "a").chmod(0o600)
    (tmp_path / "b").write_bytes(content + b"longer")
    atomic.copy_file(tmp_path / "a", tmp_path / "b")
    atomic.copy_file(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "b").read_bytes() == content
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600
    assert atomic.sha256_file(tmp_path / "c") == hashlib.sha256(content).hexdigest()


def test_a_copy_continues_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> int:
        raise OSError(errno.EXDEV, "not on this file system")

    write = os.write
    monkeypatch.setattr(os, "copy_file_range", absent)
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[:100_000]))
    (tmp_path / "a").write_bytes(content := os.urandom(3 << 20))
    atomic.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_a_disk_that_takes_nothing_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda fd, content: 0)
    with pytest.raises(OSError, match="takes nothing more"):
        atomic.write_bytes(tmp_path / "a", b"content")
    assert os.listdir(tmp_path) == []


def test_the_first_refusal_is_said_when_all_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    def unlink(name: str, *, dir_fd: int | None = None) -> None:
        os.stat(name, dir_fd=dir_fd)  # where there is nothing, there is nothing to refuse
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(OSError, match="quota") as failure:
        atomic.write_text(tmp_path / "a", "content")
    assert failure.value.filename.startswith(str(tmp_path))


def test_replace_symlink(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        atomic.replace_symlink(tmp_path / "latest", name)
        assert os.readlink(tmp_path / "latest") == name
    assert sorted(os.listdir(tmp_path)) == ["latest", "one", "two"]


def test_free_bytes_is_what_the_system_says(tmp_path: Path) -> None:
    state = os.statvfs(tmp_path)
    assert abs(atomic.free_bytes(tmp_path) - state.f_bavail * state.f_frsize) < 1 << 30
