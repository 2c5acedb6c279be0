"""The store of auxiliary variables against the same rows in memory, and against raw reads and writes of a file.

    tools/bench store [--rows 20000] [--rounds 5] [--folder DIR]

Milliseconds for a batch of rows in random order, one row 64 KB in float32 (16 x 32 x 32), medians over rounds in which
all take turns.  Memory: index_select and index_copy_ into tensors that exist already.  Raw: one preadv a row after
posix_fadvise, one pwrite a batch.  Cold: the file's pages are written out and dropped before.  A cold write includes
fsync.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hpcsplit.host.memory import keep_freed_memory

keep_freed_memory()  # before torch

import numpy as np  # noqa: E402
import torch  # noqa: E402

from hpcsplit.store.hdf5 import HdfStore  # noqa: E402
from hpcsplit.store.store import Field, MemoryStore, Store  # noqa: E402
from tools.program import ROOT  # noqa: E402
from tools.timing.table import publish  # noqa: E402

SHAPE = (16, 32, 32)
ROW_BYTES = 4 * int(np.prod(SHAPE))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
AHEAD = 4  # batches of which the raw reader tells the kernel before
IN_MEMORY, RAW, STORE_IN_MEMORY = "tensor in memory", "raw file, float32", "store in memory, float32"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files lie; default: the temporary folder")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-store")
    args = parser.parse_args()
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
        ratio = statistics.median(theirs / own for theirs, own in zip(seconds[rival], times, strict=True))
        values.append({"label": label, "n": len(times), "median_s": median, "seconds": times, "ratio": ratio})
        lines.append(
            f"{label:<40} {1e3 * median:>7.2f} {1e3 * min(times):>7.2f} {1e3 * max(times):>7.2f} "
            f"{args.batch * ROW_BYTES / median / 1e9:>6.2f}" + (f"  {ratio:.2f}  {rival}" if rival != label else "")
        )
    lines.append(f"{args.rows} rows, batches of {args.batch}, GB/s of float32 values, n = {args.rounds}")
    publish(args.out, "store", lines, values)
    return 0


Batches = list[np.ndarray]


class Rival:
    """Something that reads and writes all rows in batches; `deeds` are "read", "write", "cold read", "cold write"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.batches: dict[int, torch.Tensor] = {}
        self.deeds: dict[str, Callable[[Batches], None]] = {"read": self.read, "write": self.write}

    def forget(self) -> None:
        """Leave nothing of the file in memory."""

    def read(self, batches: Batches) -> None:
        raise NotImplementedError

    def write(self, batches: Batches) -> None:
        raise NotImplementedError

    def batch(self, ids: np.ndarray) -> torch.Tensor:
        """Values for so many rows, always the same tensor."""
        return self.batches.setdefault(len(ids), torch.ones(len(ids), *SHAPE))

    def close(self) -> None:
        pass


class InMemory(Rival):
    """What a program without a store would do."""

    def __init__(self, rows: int) -> None:
        super().__init__(IN_MEMORY)
        self.values = torch.zeros(rows, *SHAPE)

    def read(self, batches: Batches) -> None:
        for ids in batches:
            torch.index_select(self.values, 0, torch.from_numpy(ids), out=self.batch(ids))

    def write(self, batches: Batches) -> None:
        for ids in batches:
            self.values.index_copy_(0, torch.from_numpy(ids), self.batch(ids))


class RawFile(Rival):
    """A plain file of rows: the disk without HDF5, checksums and generations."""

    def __init__(self, rows: int, path: Path) -> None:
        super().__init__(RAW)
        self.deeds |= {"cold read": self.read, "cold write": self.write_through}
        self.file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(self.file, 0, rows * ROW_BYTES)

    def forget(self) -> None:
        drop(self.file)

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

    def write_through(self, batches: Batches) -> None:
        self.write(batches)
        os.fsync(self.file)

    def close(self) -> None:
        os.close(self.file)


class Stored(Rival):
    """A store as a stage uses it: an epoch that only reads, and one that only writes."""

    def __init__(self, name: str, store: Store, rows: int) -> None:
        super().__init__(name)
        self.store, self.epoch = store, 0
        if isinstance(store, HdfStore):
            self.deeds |= {"cold read": self.read, "cold write": self.write_through}
        self.write(shuffled(rows, 128))

    def forget(self) -> None:
        if isinstance(self.store, HdfStore):
            for rows in (rows for slot in self.store._files for rows in slot.values()):
                rows._map._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # mapped pages would stay
                drop(rows._fd)

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

    def write_through(self, batches: Batches) -> None:
        self.write(batches)
        self.store.sync()

    def close(self) -> None:
        self.store.close()


def everyone(rows: int, folder: Path) -> list[Rival]:
    fields = [Field("lam", SHAPE)]
    rivals: list[Rival] = [InMemory(rows), RawFile(rows, folder / "raw")]
    rivals.append(Stored(STORE_IN_MEMORY, MemoryStore(fields, rows, torch.float32), rows))
    for dtype in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        rivals.append(Stored(f"store in HDF5, {kind}", HdfStore(fields, rows, dtype, folder / kind), rows))
    return rivals


def shuffled(rows: int, batch: int) -> Batches:
    order = np.random.default_rng(0).permutation(rows)
    return [order[first : first + batch] for first in range(0, rows, batch)]


def drop(file: int) -> None:
    """Write a file's pages out and forget them."""
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    sys.exit(main())
