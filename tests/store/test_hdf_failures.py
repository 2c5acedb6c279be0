"""A full or broken disk ends in a sentence, never in a hang."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcsplit.errors import StoreError
from hpcsplit.files.hdf5 import rows_layout
from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.store.rowfile import RowFile
from hpcsplit.store.store import Field, MemoryStore
from tests.store.epochs import FIELDS, N, build, holds, rows_of, write_epoch


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_refused_before_anything_runs(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = [Field("lam", (64, 64))]
    for overtaken in (False, True):  # by others, who fill the disk between the question and the reservation
        if overtaken:
            monkeypatch.setattr("hpcsplit.store.hdf5.free_bytes", lambda _: 1 << 40)
        with pytest.raises(StoreError) as failure:
            HdfStore(big, 100, torch.float32, small_disk / "aux")
        sentence = str(failure.value)
        assert f"needs {2 * (100 * (64 * 64 * 4 + 8) + (1 << 15))} bytes" in sentence
        for word in (str(small_disk), "are free", "store.path", 'store.dtype = "float16"', "fewer"):
            assert word in sentence
        assert list(small_disk.rglob("*.h5")) == []
    assert failure.value.exit_code == 73
    monkeypatch.undo()
    HdfStore([Field("lam", (8,))], 100, torch.float32, small_disk / "aux").close()


def test_save_without_room_is_a_sentence(small_disk: Path, tmp_path: Path) -> None:
    big = [Field("lam", (64, 64))]
    disk = HdfStore(big, 100, torch.float32, tmp_path / "aux")
    memory = MemoryStore(big, 100, torch.float32)
    for store in (disk, memory):
        with closing(store):
            store.start([np.arange(100)], read=False)
            store.write(0, {"lam": torch.zeros(100, 64, 64)})
            store.finish(0)
            with pytest.raises(StoreError, match="no space left"):
                store.save(small_disk)


@pytest.mark.parametrize("kind", ["hdf5", "memory"])
def test_a_saved_row_that_is_another_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What a disk takes without a word and gives back changed."""
    fields = [Field("lam", (3, 3))]
    args = (fields, 10, torch.float32)
    store = HdfStore(*args, tmp_path / "aux") if kind == "hdf5" else MemoryStore(*args)
    module, function = ("hdf5", "copy_file") if kind == "hdf5" else ("store", "write_rows")
    whole = getattr(import_module(f"hpcsplit.store.{module}"), function)

    def changed(*args: object) -> None:
        whole(*args)
        path = tmp_path / "aux-block-000.lam.h5"
        content = bytearray(path.read_bytes())
        content[rows_layout(path).rows_offset + 40] ^= 1
        path.write_bytes(content)

    with closing(store):
        store.start([np.arange(10)], read=False)
        store.write(0, {"lam": torch.ones(10, 3, 3)})
        store.finish(0)
        store.save(tmp_path)
        monkeypatch.setattr(f"hpcsplit.store.{module}.{function}", changed)
        with pytest.raises(StoreError, match=r"aux-block-000\.lam\.h5 is not what was written: its rows"):
            store.save(tmp_path)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG])
def test_a_quota_or_a_size_limit_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StoreError, match=r"quota is used up|too large for its file system") as failure:
        build(tmp_path / "aux")
    assert ("free space" in str(failure.value)) == (number == errno.EDQUOT)
    assert list((tmp_path / "aux").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"store\.path"):
        build(tmp_path / "file" / "aux")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EIO, "check the disk")])
def test_a_failed_write_is_raised_and_never_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    before = set(threading.enumerate())
    store = build(tmp_path)
    write_epoch(store, 1)
    store.sync()
    description = store.describe()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("hpcsplit.store.rowfile.write_all", refuse)
    with pytest.raises(StoreError, match=words):
        write_epoch(store, 2)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=words):  # and again: half of the epoch is lost
        store.write(12, {field.name: rows_of(2, np.arange(8)) for field in FIELDS})
    store.close()
    assert set(threading.enumerate()) == before
    with closing(build(tmp_path)) as store:
        store.adopt(description)
        assert holds(store, 1)


def test_a_failure_that_no_call_has_seen_is_raised_by_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("hpcsplit.store.rowfile.write_all", refuse)
    write_epoch(store, 1, steps=1)
    store._thread.submit(int).result()  # by now the write before it has failed
    with pytest.raises(StoreError, match="broken disk"):
        store.close()
    store.close()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:100], offset))
    with closing(build(tmp_path)) as store:
        write_epoch(store, 1)
        assert holds(store, 1)


def test_a_failed_read_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: RowFile, positions: np.ndarray) -> torch.Tensor:
        raise OSError(errno.EIO, "broken disk")

    with closing(build(tmp_path)) as store:
        write_epoch(store, 1)
        monkeypatch.setattr(RowFile, "gather", refuse)
        store.start([np.arange(N)])
        with pytest.raises(OSError, match="broken disk"):
            store.read(0)


def test_no_thread_stays_and_waiting_is_counted(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    store = build(tmp_path)
    write_epoch(store, 0)
    waited = store.io_wait_s
    write_epoch(store, 1)
    assert store.io_wait_s > waited > 0
    store.start([np.arange(N)])  # closed in the middle of an epoch
    store.close()
    assert set(threading.enumerate()) == before
