"""What is no regular file, or is reached through a link, is never opened."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcsplit.errors import ConfigError
from hpcsplit.files.nofollow import (
    link,
    make_folder,
    names,
    open_file,
    read_bytes,
    read_text,
    remove,
    remove_tree,
    replace,
    state,
)

NOBODY = 65534
READ, WRITE, NEW = os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("secret")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(str(path))


PLANTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (lambda path: path.symlink_to("../secret"), "is a link to ../secret, and links in a run directory are not"),
    "dangling link": (lambda path: path.symlink_to("../nothing"), "is a link to ../nothing"),
    "pipe": (os.mkfifo, "is a pipe, no regular file; remove it"),
    "socket": (a_socket, "is a socket, no regular file; remove it"),
    "folder": (os.mkdir, "is a folder, no regular file; remove it"),
    "second name": (lambda path: os.link(path.parent.parent / "secret", path), r"has 2 names \(hard links\)"),
}


@pytest.mark.parametrize("flags", [READ, WRITE, NEW])
@pytest.mark.parametrize("plant", PLANTS)
def test_planted_names_are_refused_and_left_alone(run: Path, secret: Path, plant: str, flags: int) -> None:
    make, sentence = PLANTS[plant]
    make(run / "records.jsonl")
    if (plant, flags) == ("second name", READ):  # as in a backup with hard links
        assert read_text(run / "records.jsonl") == "secret"
        return
    with pytest.raises(ConfigError, match=f"^{run}/records.jsonl {sentence}"):
        open_file(run / "records.jsonl", flags)
    assert secret.read_text() == "secret"
    assert sorted(os.listdir(run.parent)) == ["run", "secret"]


def test_a_link_in_the_middle_of_a_path(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_text("a")
    (run / "log").symlink_to(outside)
    path = run / "log" / "a"
    tries: list[Callable[[], object]] = [
        lambda: open_file(path, READ),
        lambda: open_file(run / "log", os.O_RDONLY | os.O_DIRECTORY),
        lambda: read_bytes(path),
        lambda: names(run / "log"),
        lambda: state(path),
        lambda: make_folder(run / "log"),
        lambda: make_folder(path),
        lambda: remove(path),
        lambda: remove_tree(path),
        lambda: replace(path, run / "b"),
        lambda: replace(run / "c", path),
        lambda: link(path, "d"),
    ]
    (run / "c").write_text("")
    for each in tries:
        with pytest.raises(ConfigError, match=rf"^{run}/log is a link to {outside}, and links in a run"):
            each()
    assert os.listdir(outside) == ["a"]


@needs_root
@pytest.mark.parametrize("flags", [READ, WRITE])
def test_files_of_others(run: Path, secret: Path, flags: int) -> None:
    path = run / "summary.txt"
    path.write_text("")
    os.chown(path, NOBODY, -1)
    if flags == READ:
        os.close(open_file(path, flags))
    else:
        with pytest.raises(ConfigError, match=f"{path} belongs to uid {NOBODY}, this run to uid 0"):
            open_file(path, flags)
    os.chown(run, NOBODY, -1)  # a folder that was taken over
    os.close(open_file(path, flags))
    path.unlink()
    os.link(secret, path)  # the reader's own file, in somebody else's folder
    with pytest.raises(ConfigError, match="has 2 names"):
        open_file(path, flags)


def test_ordinary_files_and_folders(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "a"
    with open(path, "w", encoding="utf-8", opener=open_file) as file:
        file.write("long text")
    with open(path, "w", encoding="utf-8", opener=open_file) as file:
        file.write("κ")
    with open(path, "ab", opener=open_file) as file:
        file.write(b"\xff")
    assert read_text(path) == "κ\ufffd"
    with pytest.raises(FileExistsError, match=str(path)):
        open_file(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with pytest.raises(FileNotFoundError, match=f"{run}/b"):
        open_file(run / "b", READ)
    assert make_folder(run / "f")
    assert not make_folder(run / "f")
    replace(path, run / "f" / "b")
    link(run / "f" / "latest", "b")
    assert names(run / "f") == ["b", "latest"]
    assert names(run / "absent") == []
    assert state(run / "absent" / "x") is None
    monkeypatch.chdir(run)
    assert read_text("f/b") == "κ\ufffd"
    assert names(Path()) == ["f"]
    remove(Path("f/latest"))
    remove(Path("f/latest"))
    assert names(Path("f")) == ["b"]
    remove_tree(Path("f"))
    assert names(Path("../run")) == []


def test_a_tree_is_removed_but_not_what_its_links_lead_to(run: Path, secret: Path) -> None:
    (run / "f").mkdir()
    (run / "f" / "up").symlink_to(run.parent)
    (run / "g").symlink_to(run.parent)
    remove_tree(run / "f")
    remove_tree(run / "g")
    remove_tree(run / "absent")
    assert names(run) == []
    assert secret.exists()


def test_what_is_too_large_is_not_read(run: Path) -> None:
    with open(run / "a", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=f"has {1 << 40} bytes, at most {1 << 30} are read"):
        read_bytes(run / "a")
