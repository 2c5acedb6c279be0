"""What only the store on disk promises: resumption, a valid format, bounded memory."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcsplit.errors import LaunchError, StoreError
from hpcsplit.files.hdf5 import read_attributes, read_tensors, rows_layout
from hpcsplit.store.rowfile import RowFile, checksum, wrap
from hpcsplit.store.store import MemoryStore
from tests.store.damage import DAMAGES, harm
from tests.store.epochs import FIELDS, LABELS, N, build, environment, holds, rows_of, write_epoch

# ---------------------------------------------------------------------------------------------------- resumption


def test_a_new_process_takes_up_what_a_killed_one_left(tmp_path: Path) -> None:
    program = """
import json, os, signal, sys
from pathlib import Path
from tests.store.epochs import build, write_epoch
store = build(Path(sys.argv[1]))
write_epoch(store, 1)
write_epoch(store, 2)
store.sync()
print(json.dumps(store.describe()), flush=True)
write_epoch(store, 3, steps=7)
store._check(drain=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, env=environment()
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    description = json.loads(run.stdout)
    with closing(build(tmp_path)) as store:
        store.adopt(description)
        store.protect(description["slot"])
        assert store.epoch == 2
        assert holds(store, 2)
        assert store.describe() == description
        write_epoch(store, 3)
        assert holds(store, 3)
    with closing(build(tmp_path)) as again, pytest.raises(StoreError, match="complete is 0, 1 is wanted"):
        again.adopt(description | {"slot": 1 - description["slot"]})


def test_what_a_checkpoint_refers_to_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    with closing(build(tmp_path)) as store:
        write_epoch(store, 1)
        monkeypatch.setattr(os, "fsync", noted)
        monkeypatch.setattr("hpcsplit.store.hdf5.set_attributes", lambda *_: synced.clear())  # rows come last
        store.sync()
        assert sorted(synced) == ["block-004.kappa.1.h5", "block-004.lam.1.h5"]


def test_an_epoch_that_only_reads_spoils_neither_generation_on_the_disk(tmp_path: Path) -> None:
    """Killed right after it, a run may take up the current one or the one that its checkpoint refers to."""
    with closing(build(tmp_path)) as store:
        described = []
        for epoch in (1, 2):
            write_epoch(store, epoch)
            store.sync()
            described.append(store.describe())
        store.start([np.arange(N)], write=False)
        store.read(0)
        store.finish(3)
    for epoch, description in enumerate(described, start=1):
        with closing(build(tmp_path)) as store:
            store.adopt(description)
            assert holds(store, epoch)


def test_a_store_is_not_made_new_where_too_many_files_are_open(tmp_path: Path) -> None:
    with closing(build(tmp_path)) as store:
        write_epoch(store, 1)
        store.sync()
        description = store.describe()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(LaunchError, match="only 3 files open"):
            build(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with closing(build(tmp_path)) as store:
        store.adopt(description)
        assert holds(store, 1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_adopt_refuses_a_damaged_generation(tmp_path: Path, damage: str) -> None:
    with closing(build(tmp_path)) as store:
        write_epoch(store, 1)
        store.sync()
        description = store.describe()
    harm(tmp_path / f"block-004.kappa.{description['slot']}.h5", damage)
    with closing(build(tmp_path)) as store:
        with pytest.raises(StoreError, match=r"block-004\.kappa\.1\.h5: .*recompute"):
            store.adopt(description)
        assert store.epoch is None


def test_adopt_refuses_another_run_or_epoch(tmp_path: Path) -> None:
    with closing(build(tmp_path)) as store:
        write_epoch(store, 1)
        store.sync()
        old = store.describe()
        for epoch in (2, 3):
            write_epoch(store, epoch)
            store.sync()
    with closing(build(tmp_path)) as store, pytest.raises(StoreError, match="its epoch is 3, 1 is wanted"):
        store.adopt(old)
    with closing(build(tmp_path, labels=LABELS | {"config": "beef"})) as store:
        with pytest.raises(StoreError, match="its config is 'c0ffee', 'beef' is wanted"):
            store.adopt(old)
        write_epoch(store, 1)
        store.sync()
        store.adopt(store.describe())
    with closing(build(tmp_path, torch.float16)) as store, pytest.raises(StoreError, match="dtype"):
        store.adopt(old)
    with pytest.raises(StoreError, match="memory end with the process"):
        MemoryStore(FIELDS, N, torch.float32).adopt(old)


def test_adopt_refuses_fields_of_different_orders(tmp_path: Path) -> None:
    """Each is whole and has its checksum, but their rows at one position belong to two samples."""
    described = []
    for seed in (1, 2):
        order = np.random.default_rng(seed).permutation(N)
        with closing(build(tmp_path / str(seed))) as store:
            store.start([order], read=False)
            store.write(0, {field.name: rows_of(1, order) for field in FIELDS})
            store.finish(1)
            store.sync()
            described.append(store.describe())
    mixed, slot = described[0], described[0]["slot"]
    mixed["checksums"]["kappa"] = described[1]["checksums"]["kappa"]
    shutil.copy(tmp_path / f"2/block-004.kappa.{slot}.h5", tmp_path / f"1/block-004.kappa.{slot}.h5")
    with closing(build(tmp_path / "1")) as store:
        with pytest.raises(StoreError, match=r"kappa.*its samples are in another order than those of 'lam'"):
            store.adopt(mixed)
        assert store.epoch is None


def test_adopt_with_a_constant(tmp_path: Path) -> None:
    with closing(build(tmp_path)) as store:
        write_epoch(store, 1)
        store.fill("kappa", 0.0)
        store.sync()
        description = json.loads(json.dumps(store.describe()))
        assert read_attributes(tmp_path / "block-004.kappa.1.h5")["fill"] == 0.0
    with closing(build(tmp_path)) as store:
        store.adopt(description)
        assert holds(store, 1)
        assert not store.peek(np.arange(N))["kappa"].any()


def test_files_are_private_reserved_and_kept_when_they_fit(tmp_path: Path) -> None:
    names = sorted(f"block-004.{name}.{slot}.h5" for name in ("lam", "kappa") for slot in (0, 1))
    build(tmp_path).close()
    assert sorted(os.listdir(tmp_path)) == names
    inodes = {name: (tmp_path / name).stat().st_ino for name in names}
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in names)
    (tmp_path / names[1]).write_bytes(b"not HDF5")
    with closing(build(tmp_path)):
        assert all((tmp_path / n).stat().st_blocks * 512 >= (tmp_path / n).stat().st_size for n in names)
    assert [n for n in names if (tmp_path / n).stat().st_ino == inodes[n] and n != names[1]] == names[:1] + names[2:]
    build(tmp_path, torch.float16).close()
    assert rows_layout(tmp_path / names[0]).dtype == torch.float16


# ---------------------------------------------------------------------------------------------------- the format


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_reader_of_hdf5_finds_each_sample(tmp_path: Path, dtype: torch.dtype) -> None:
    with closing(build(tmp_path, dtype)) as store:
        write_epoch(store, 0)
        store.sync()
        path = tmp_path / f"block-004.lam.{store.slot}.h5"
        tensors, attributes = read_tensors(path)
    assert attributes["epoch"] == 0
    assert attributes["complete"] == 1
    assert attributes["shape"] == "4,8"
    assert attributes["dtype"] == str(dtype).split(".")[1]
    assert torch.equal(tensors["rows"].float(), rows_of(0, tensors["index"].numpy()))


def test_h5dump_reads_the_store(tmp_path: Path) -> None:
    if shutil.which("h5dump") is None:
        pytest.skip("h5dump (Debian package hdf5-tools) is not installed")
    with closing(build(tmp_path)) as store:
        write_epoch(store, 2)
        store.sync()
        path = tmp_path / f"block-004.lam.{store.slot}.h5"
        texts = [
            subprocess.run(["h5dump", "-y", "-d", name, str(path)], check=True, capture_output=True, text=True).stdout
            for name in ("/rows", "/index")
        ]
    rows, index = (np.array(re.findall(r"\d+", t.split("DATA {")[1]), np.int64) for t in texts)
    assert np.array_equal(rows.reshape(N, 32), np.repeat(2000 + index[:, None], 32, axis=1))


def test_checksums_notice_exchanged_rows_and_add_up() -> None:
    rng = np.random.default_rng(0)
    for size in (64, 12, 6, 5):
        rows = rng.integers(0, 256, (20, size), np.uint8)
        whole = checksum(rows, 100)
        assert whole == wrap(checksum(rows[13:], 113) + checksum(rows[:13], 100))
        assert -(2**63) <= whole < 2**63
        exchanged = rows.copy()
        exchanged[[3, 7]] = rows[[7, 3]]
        assert checksum(exchanged, 100) != whole
        assert checksum(rows, 101) != whole


# ---------------------------------------------------------------------------------------------------- memory


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import numpy as np, torch
from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.store.store import Field, generation_bytes
def anonymous_bytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])
store = HdfStore([Field("lam", (4096,))], 4000, torch.float32, Path(sys.argv[1]))
batches = list(np.random.default_rng(0).permutation(4000).reshape(-1, 32))
rows = torch.zeros(32, 4096)
for epoch in range(2):
    store.start(batches, read=epoch > 0)
    before = anonymous_bytes()
    for step in range(len(batches)):
        if epoch:
            store.read(step)
        store.write(step, {"lam": rows})
    store.finish(epoch)
store.adopt(store.describe() if store.sync() is None else None)
print(anonymous_bytes() - before, generation_bytes(store.fields.values(), store.rows, store.dtype))
store.close()
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert run.returncode == 0, run.stderr
    grown, size = map(int, run.stdout.split())
    assert size > 65_000_000
    assert grown < 40_000_000  # batches under way, and one block of the verification


def test_what_was_read_ahead_and_is_left_out_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    gather = RowFile.gather

    def noted(file: RowFile, positions: np.ndarray) -> torch.Tensor:
        rows = gather(file, positions)
        alive.append(weakref.ref(rows))
        return rows

    monkeypatch.setattr(RowFile, "gather", noted)
    with closing(build(tmp_path)) as store:
        write_epoch(store, 1)
        store.start([np.arange(first, first + 10) for first in range(0, N, 10)], write=False)
        for step in (0, 5, 10, 19):
            store.read(step)
        store.finish(2)
        gc.collect()
        assert len(alive) > 10
        assert [ref for ref in alive if ref() is not None] == []


def test_a_copy_that_was_taken_over_in_part_is_no_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has been complete for another epoch before, and its attributes still say so."""
    copy = tmp_path / "copy"
    copy.mkdir()
    with closing(build(tmp_path / "saved")) as saved:
        write_epoch(saved, 1)
        saved.save(copy)
        description = saved.describe()
    with closing(build(tmp_path / "own")) as store:
        for epoch in (2, 3):
            write_epoch(store, epoch)
            store.sync()
        before = store.describe()

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with closing(build(tmp_path / "own")) as store:
        monkeypatch.setattr("hpcsplit.store.rowfile.RowFile.put_index", killed)
        with pytest.raises(KeyboardInterrupt):
            store.restore(copy, description)
        monkeypatch.undo()
    with closing(build(tmp_path / "own")) as store, pytest.raises(StoreError, match="complete is 0, 1 is wanted"):
        store.adopt(before)
