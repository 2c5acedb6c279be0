"""The store of auxiliary variables against the same rows in memory, and against raw reads and writes of a file.

    tools/bench store [--rows 20000] [--rounds 5] [--folder DIR]

Milliseconds for a batch of rows in random order, one row 64 KB in float32 (16 x 32 x 32), medians over rounds in which
all take turns.  Memory: index_select and index_copy_ into tensors that exist already.  Raw: one preadv a row after
posix_fadvise, one pwrite a batch.  Cold: the file's pages are written out and dropped before.  A cold write includes
fsync.
"""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.store.store import Field, MemoryStore, Store
from tools.timing.table import options, publish, ratio

SHAPE = (16, 32, 32)
ROW_BYTES = 4 * int(np.prod(SHAPE))
DTYPES = ("float32", "float16", "bfloat16")
AHEAD = 4  # batches of which the raw reader tells the kernel before
IN_MEMORY, RAW, STORE_IN_MEMORY = "tensor in memory", "raw file, float32", "store in memory, float32"


def main() -> None:
    place = {"type": Path, "help": "where the files lie; default: the temporary folder"}
    args = options(__doc__, "store", rows=20_000, batch=128, rounds=5, folder=place)
    torch.set_num_threads(1)
    batches = shuffled(args.rows, args.batch)
    with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-", dir=args.folder) as name:
        rivals = everyone(args.rows, Path(name))
        seconds: dict[str, list[float]] = {f"{each.name}, {doing}": [] for each in rivals for doing in each.deeds}
        for cold in (False, True):
            for number in range(-2, args.rounds):  # rounds -2 and -1 touch all pages
                for each in rivals:
                    for doing, deed in each.deeds.items():
                        if cold != doing.startswith("cold"):
                            continue
                        if cold:
                            each.forget()
                        began = time.perf_counter()
                        deed(batches)
                        if number >= 0:
                            seconds[f"{each.name}, {doing}"].append((time.perf_counter() - began) / len(batches))
        for each in rivals:
            each.close()
    lines = [f"{'':<40} {'ms':>7} {'min':>7} {'max':>7} {'GB/s':>6}  times as fast as"]
    values = []
    for label, times in seconds.items():
        doing = label.rpartition(", ")[2]
        rival = f"{RAW if doing.startswith('cold') else IN_MEMORY}, {doing}"
        median = statistics.median(times)
        faster = ratio(seconds[rival], times)
        values.append({"label": label, "n": len(times), "median_s": median, "seconds": times, "ratio": faster})
        lines.append(
            f"{label:<40} {1e3 * median:>7.2f} {1e3 * min(times):>7.2f} {1e3 * max(times):>7.2f} "
            f"{args.batch * ROW_BYTES / median / 1e9:>6.2f}" + (f"  {faster:.2f}  {rival}" if rival != label else "")
        )
    lines.append(f"{args.rows} rows, batches of {args.batch}, GB/s of float32 values, n = {args.rounds}")
    publish(args.out, "store", lines, values)


Batches = list[np.ndarray]


class Rival:
    """Something that reads and writes all rows in batches: the rows as a tensor, what a program without a store has.
    What lies on the disk is read and written cold, too."""

    on_disk = False

    def __init__(self, name: str, rows: int) -> None:
        self.name = name
        self.batches: dict[int, torch.Tensor] = {}
        self.deeds: dict[str, Callable[[Batches], None]] = {"read": self.read, "write": self.write}
        if self.on_disk:
            self.deeds |= {"cold read": self.read, "cold write": self.write_through}
        else:
            self.values = torch.zeros(rows, *SHAPE)

    def batch(self, ids: np.ndarray) -> torch.Tensor:
        """Values for so many rows, always the same tensor."""
        return self.batches.setdefault(len(ids), torch.ones(len(ids), *SHAPE))

    def read(self, batches: Batches) -> None:
        for ids in batches:
            torch.index_select(self.values, 0, torch.from_numpy(ids), out=self.batch(ids))

    def write(self, batches: Batches) -> None:
        for ids in batches:
            self.values.index_copy_(0, torch.from_numpy(ids), self.batch(ids))

    def write_through(self, batches: Batches) -> None:
        self.write(batches)
        self.sync()

    def sync(self) -> None:
        """Wait for the disk."""

    def forget(self) -> None:
        """Leave nothing of what lies on the disk in memory."""

    def close(self) -> None:
        """Of a tensor nothing is left to do."""


class RawFile(Rival):
    """A plain file of rows: the disk without HDF5, checksums and generations."""

    on_disk = True

    def __init__(self, rows: int, path: Path) -> None:
        super().__init__(RAW, rows)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self.file, 0, rows * ROW_BYTES)

    def read(self, batches: Batches) -> None:
        for number, ids in enumerate(batches):
            for soon in batches[number + AHEAD if number else 0 : number + AHEAD + 1]:
                for row in soon.tolist():
                    os.posix_fadvise(self.file, row * ROW_BYTES, ROW_BYTES, os.POSIX_FADV_WILLNEED)
            for row, place in zip(ids.tolist(), self.batch(ids).numpy(), strict=True):
                os.preadv(self.file, [place.data], row * ROW_BYTES)

    def write(self, batches: Batches) -> None:
        first = 0
        for ids in batches:
            first += os.pwrite(self.file, self.batch(ids).numpy().data, first)

    def sync(self) -> None:
        os.fsync(self.file)

    def forget(self) -> None:
        drop(self.file)

    def close(self) -> None:
        os.close(self.file)


class Stored(Rival):
    """A store as a stage uses it: an epoch that only reads, and one that only writes."""

    def __init__(self, name: str, store: Store, rows: int) -> None:
        self.on_disk = isinstance(store, HdfStore)
        super().__init__(name, 0)
        self.store, self.epoch = store, 0
        self.sync, self.close = store.sync, store.close  # type: ignore[method-assign]
        self.write(shuffled(rows, 128))

    def read(self, batches: Batches) -> None:
        self.store.start(batches, write=False)
        for step in range(len(batches)):
            self.store.read(step)
        self.store.finish(self.epoch)

    def write(self, batches: Batches) -> None:
        self.epoch += 1
        self.store.start(batches, read=False)
        for step, ids in enumerate(batches):
            self.store.write(step, {"lam": self.batch(ids)})
        self.store.finish(self.epoch)

    def forget(self) -> None:
        if isinstance(self.store, HdfStore):
            for rows in chain(*(slot.values() for slot in self.store._files)):
                rows._map._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # mapped pages would stay
                drop(rows._fd)


def everyone(rows: int, folder: Path) -> list[Rival]:
    fields = [Field("lam", SHAPE)]
    stores: dict[str, Store] = {STORE_IN_MEMORY: MemoryStore(fields, rows, torch.float32)}
    for kind in DTYPES:
        stores[f"store in HDF5, {kind}"] = HdfStore(fields, rows, getattr(torch, kind), folder / kind)
    stored = [Stored(name, store, rows) for name, store in stores.items()]
    return [Rival(IN_MEMORY, rows), RawFile(rows, folder / "raw"), *stored]


def shuffled(rows: int, batch: int) -> Batches:
    order = np.random.default_rng(0).permutation(rows)
    return [order[first : first + batch] for first in range(0, rows, batch)]


def drop(file: int) -> None:
    """Write a file's pages out and forget them."""
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
