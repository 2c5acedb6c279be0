"""A power loss at any moment leaves the old content or the new one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcsplit.files import atomic
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.hdf5 import read_attributes
from hpcsplit.run.lock import RunLock
from hpcsplit.run.records import EpochRecord, Records
from tests.checkpoint.conftest import STOP_AT_ONCE, THREE_STEPS, Run
from tests.engine.small import write_toml
from tests.files.powerloss import Disk, Tree


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", monkeypatch)
    yield disk
    disk.close()


def test_what_is_written_whole_is_old_or_new(disk: Disk) -> None:
    def check(source: Path, target: Path) -> None:
        assert disk.early()["a.txt"] in (b"old", b"new")

    disk.after_rename = check
    for text in ("old", "new"):
        atomic.write_text(disk.root / "a.txt", text)
        assert disk.late() == disk.now() == {"a.txt": text.encode()}


def test_links_appended_lines_and_folders_are_there(disk: Disk) -> None:
    for name in ("one", "two"):
        atomic.replace_symlink(disk.root / "latest", name)
        assert disk.late() == {"latest": name}
    atomic.append_text(disk.root / "lines", "a\n")
    assert disk.late()["lines"] == b"a\n"
    atomic.append_text(disk.root / "lines", "b\n")
    assert disk.late()["lines"] == b"a\nb\n"
    atomic.make_folders(disk.root / "x" / "y")
    atomic.write_text(disk.root / "x" / "y" / "c", "c")
    assert disk.late() == disk.now()


def test_records_are_there(disk: Disk) -> None:
    records = Records(disk.root / "records.jsonl")
    for epoch in range(3):
        records.append(EpochRecord(epoch, "serial"))
        assert disk.late() == disk.now()
    records.truncate(before_epoch=1)
    assert disk.late() == disk.now()
    assert len(records.load()) == 1


def test_a_finished_checkpoint_is_there_without_its_link_too(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(ckpt, "replace_symlink", refuse)
    atomic.make_folders(disk.root / "checkpoints")
    folder = ckpt.begin(disk.root / "checkpoints", "epoch-0001-step-000000")
    atomic.write_text(folder / "stage-000.h5", "weights")
    ckpt.finish(folder, {"stage-000.h5": hashlib.sha256(b"weights").hexdigest()}, 1)
    there = {f"checkpoints/epoch-0001-step-000000/{name}" for name in ("stage-000.h5", ckpt.SUMS)}
    assert disk.late().keys() == there


def test_a_lock_that_the_disk_refuses_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", refuse)  # where a network file system says what it could not write
    with pytest.raises(OSError, match="quota"):
        RunLock.acquire(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def counts(tree: Tree) -> dict[str, Tree]:
    """The folders that count as checkpoints: name -> the files that SHA256SUMS lists, each with the right content."""
    found = {}
    for path, sums in tree.items():
        folder, _, file = path.rpartition("/")
        name = folder.removeprefix("run/checkpoints/")
        if file != ckpt.SUMS or name.endswith(".tmp"):
            continue
        assert isinstance(sums, bytes)
        assert sums, f"{name} counts without its sums"
        listed = {file: digest for digest, file in (line.split("  ") for line in sums.decode().splitlines())}
        files = {file: tree.get(f"{folder}/{file}") for file in listed}
        for file, digest in listed.items():
            content = files[file]
            assert isinstance(content, bytes), f"{name} counts without {file}"
            assert hashlib.sha256(content).hexdigest() == digest, f"{name} counts with half of {file}"
        found[name] = {file: content for file, content in files.items() if content is not None}
    return found


@pytest.mark.parametrize(("kind", "aux"), [("hdf5", "copy"), ("hdf5", "keep"), ("memory", "copy")])
def test_a_checkpoint_counts_once_all_of_it_is_on_the_disk(disk: Disk, kind: str, aux: str) -> None:
    """Every rename on the way of a run of S P: never a checkpoint that counts and is not whole, in any order that a
    disk may choose, never a link or sums before what they speak of."""
    moments = []

    def before(source: Path, target: Path) -> None:
        moments.append(target.name)
        if target.name == ckpt.SUMS:  # each rank has seen to its own files: a disk may be one of several servers'
            assert disk.names(target.parent) >= set(os.listdir(target.parent)) - {source.name, ckpt.MANIFEST}
        if source.name.startswith("epoch-") and not target.name.endswith(".tmp"):
            assert disk.names(source) == set(os.listdir(source)), "the folder before its files"
        if target.name == "latest":
            assert os.readlink(source) in counts(disk.late()), "the link before its checkpoint"

    def after(source: Path, target: Path) -> None:
        counts(disk.early())
        counts(disk.late())

    disk.before_rename, disk.after_rename = before, after
    toml = write_toml(disk.root.parent / "c.toml", 2, **THREE_STEPS, store__kind=kind, checkpoint__aux=aux)
    run = Run(toml, disk.root / "run")
    for _ in range(2):
        assert run.go(*STOP_AT_ONCE) == 75
    assert moments.count(ckpt.SUMS) == moments.count("latest") == 2
    late, now = disk.late(), disk.now()
    assert counts(late).keys() == counts(now).keys() == {"epoch-0001-step-000000", "epoch-0002-step-000000"}
    if aux == "keep":
        slots = json.loads(
            read_attributes(run.folder / "checkpoints" / "epoch-0002-step-000000" / ckpt.MANIFEST)["aux"]
        )
        kept = [name for name in now if name.startswith("run/aux/") and name.endswith(f".{slots[1]['slot']}.h5")]
        assert kept
        assert all(late[name] == now[name] for name in kept), "rows that the checkpoint refers to"
    else:
        assert any(name.startswith("aux-") for name in counts(late)["epoch-0002-step-000000"])
    others = [name for name in now if not name.startswith(("run/aux/", "run/log/", "run/lock"))]
    assert {name: late.get(name) for name in others} == {name: now[name] for name in others}
