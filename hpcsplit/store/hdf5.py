"""The store in HDF5 files, two for each variable, and a thread that reads ahead and writes behind."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from hpcsplit.errors import CheckpointError, StoreError
from hpcsplit.files.atomic import copy_file, free_bytes, fsync_dir, gone_on_failure, make_folders, write_failure
from hpcsplit.files.hdf5 import RowsLayout, create_rows, reserve, rows_layout, set_attributes
from hpcsplit.files.nofollow import names, remove
from hpcsplit.store.generation import Visits, generation_bytes, no_room
from hpcsplit.store.rowfile import RowFile, wrap
from hpcsplit.store.store import Field, Labels, Store

AHEAD = 3  # batches fetched before they are asked for
BEHIND = 4  # batches handed over and not yet written
_HEADER_BYTES = 1 << 15  # more than what HDF5 adds to the rows and the index

T = TypeVar("T")


class HdfStore(Store):
    """Files `block-010.lam.0.h5` and `.1.h5` in `folder`, for slots 0 and 1 of the field "lam" before block 10.

    Their whole space is reserved at once: StoreError when there is no room.  Files of the same geometry are used again,
    with what they hold, so that `adopt` can take it up; others are replaced.  Memory used does not grow with the rows,
    but for 8 bytes a sample.  With `pinned` what is read is in pinned memory, ready to be copied to a GPU.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        rows: int,
        dtype: torch.dtype,
        folder: Path,
        stage: int = 0,
        labels: Labels | None = None,
        pinned: bool = False,
    ) -> None:
        super().__init__(fields, rows, dtype, stage, labels)
        self.folder = Path(folder)
        self._pinned = pinned
        self._files = [
            {name: RowFile(path, layout) for name, (path, layout) in slot.items()} for slot in self._reserve()
        ]
        self._positions = np.arange(rows)  # of each sample's row in the current generation
        self._sums: dict[str, int] = {}  # of the current generation
        self._next_sums: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, f"store-{stage:03d}")
        self._reads: dict[int, Future[dict[str, torch.Tensor]]] = {}
        self._next_read = 0
        self._writes: deque[Future[None]] = deque()
        self._failure: Exception | None = None

    def _reserve(self) -> list[dict[str, tuple[Path, RowsLayout]]]:
        """Both slots' files with their space, new or as they are."""
        paths = [
            {name: self.folder / f"{field.file_stem}.{slot}.h5" for name, field in self.fields.items()}
            for slot in (0, 1)
        ]
        needed = 2 * sum(map(self._file_bytes, self.fields))
        try:
            make_folders(self.folder)
            absent = [(name, path) for slot in paths for name, path in slot.items() if not self._fits(name, path)]
            needed = sum(self._file_bytes(name) for name, _ in absent)
            free = free_bytes(self.folder) + sum(path.stat().st_size for _, path in absent if path.exists())
            if needed > free:
                raise self._no_room(needed, free)
            for _, path in absent:
                remove(path)
            with ExitStack() as fresh:
                for name, path in absent:
                    fresh.enter_context(gone_on_failure(path))
                    attributes = self.schema.attributes(name, None, None, 0) | {"complete": 0}
                    create_rows(path, self.rows, self.fields[name].shape, self.dtype, attributes)
                slots = [{name: (path, rows_layout(path)) for name, path in slot.items()} for slot in paths]
                for path, layout in (file for slot in slots for file in slot.values()):
                    reserve(path, layout.size_bytes)
                fsync_dir(self.folder)
                return slots
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise self._no_room(needed, free_bytes(self.folder)) from error
            if error.errno in (errno.EDQUOT, errno.EFBIG):
                raise write_failure(self.folder, error, needed) from error
            raise StoreError(
                f"{self.folder}: no store can be made there ({error}); set store.path to another folder"
            ) from error

    def _fits(self, name: str, path: Path) -> bool:
        try:
            layout = rows_layout(path)
        except CheckpointError:
            return False
        return (layout.rows, layout.row_shape, layout.dtype) == (self.rows, self.fields[name].shape, self.dtype)

    def _file_bytes(self, name: str) -> int:
        return generation_bytes([self.fields[name]], self.rows, self.dtype) + _HEADER_BYTES

    def _no_room(self, needed: int, free: int) -> StoreError:
        return no_room(self.folder, f"stage {self.schema.stage}", needed, free, self.dtype)

    def _begin(self, visits: Visits) -> None:
        self._check()
        for file in self._files[1 - self.slot].values() if visits.writes else ():
            set_attributes(file.path, {"complete": 0})
        self._next_sums = {}
        self._next_read = visits.last_read + 1
        if visits.reads and self._stored():
            self._fetch_until(visits, visits.last_read + AHEAD)

    def _fetch_until(self, visits: Visits, last: int) -> None:
        while self._next_read <= min(last, len(visits.batches) - 1):
            step = self._next_read
            self._reads[step] = self._thread.submit(self._gather, visits, step, self._stored(), self.slot)
            self._reads[step].add_done_callback(self._sound)
            self._next_read += 1

    def _gather(self, visits: Visits, step: int, names: list[str], slot: int) -> dict[str, torch.Tensor]:
        later = visits.batches[(step + AHEAD if step > visits.first else step) : step + AHEAD + 1]
        for name, batch in product(names, later):
            self._files[slot][name].advise(self._positions[batch])
        rows = self._gathered(visits.batches[step], names, slot)
        return {name: values.pin_memory() for name, values in rows.items()} if self._pinned else rows

    def _fetch(self, visits: Visits, step: int) -> dict[str, torch.Tensor]:
        self._check()
        self._fetch_until(visits, step + AHEAD)
        for skipped in [early for early in self._reads if early < step]:
            self._reads.pop(skipped).cancel()
        return self._result(self._reads.pop(step))

    def _look_up(self, ids: np.ndarray, names: list[str]) -> dict[str, torch.Tensor]:
        self._check(drain=True)
        return self._gathered(ids, names, self.slot)

    def _gathered(self, ids: np.ndarray, names: list[str], slot: int) -> dict[str, torch.Tensor]:
        positions = self._positions[ids]
        return {name: self._files[slot][name].gather(positions).to(torch.float32) for name in names}

    def _put(self, visits: Visits, step: int, values: Mapping[str, torch.Tensor], arrive: Callable[[], None]) -> None:
        self._check()
        self._writes.append(self._thread.submit(self._write_rows, visits.firsts[step], values, arrive, 1 - self.slot))
        self._writes[-1].add_done_callback(self._sound)
        while len(self._writes) > BEHIND:
            self._result(self._writes.popleft())

    def _write_rows(
        self, first: int, values: Mapping[str, torch.Tensor], arrive: Callable[[], None], slot: int
    ) -> None:
        arrive()
        for name, value in values.items():
            self._next_sums[name] = self._next_sums.get(name, 0) + self._files[slot][name].put(first, value)

    def _commit(self, visits: Visits) -> None:
        self._check(drain=True)
        for read in self._reads.values():
            read.cancel()
        self._reads.clear()
        files = self._files[1 - self.slot]
        self._sums = {name: wrap(self._next_sums[name] + files[name].put_index(visits.order)) for name in visits.names}
        self._locate(visits.order)

    def _locate(self, order: np.ndarray) -> None:
        self._positions = np.empty(self.rows, np.int64)
        self._positions[order] = np.arange(self.rows)

    # ------------------------------------------------------------------------------------------------ the thread

    def _result(self, future: Future[T]) -> T:
        try:
            return future.result()
        except Exception as error:
            self._failure = error
            raise

    def _sound(self, future: Future[Any]) -> None:
        if not future.cancelled() and isinstance(error := future.exception(), Exception):
            self.alarm(error)

    def _check(self, *, drain: bool = False) -> None:
        """Raise what the thread has failed with, now or before; with `drain`, when it has written all."""
        if self._failure is not None:
            raise self._failure
        while self._writes and (drain or self._writes[0].done()):
            self._result(self._writes.popleft())

    def sync(self) -> None:
        self._mark()
        for file in self._files[self.slot].values():
            file.sync()

    def _mark(self) -> None:
        """Say in the files what generation they hold."""
        self._resting()
        self._check()
        for name, file in self._files[self.slot].items():
            if name in self.filled or self.epoch is not None:
                attributes = self.schema.attributes(name, self.epoch, self.filled.get(name), self._checksum(name))
                set_attributes(file.path, attributes)

    def adopt(self, description: Mapping[str, Any]) -> None:
        self._resting()
        self.schema.check(description, StoreError, self.folder)
        slot, filled = int(description["slot"]), self._constants_of(description)
        stored = [name for name in self.fields if name not in filled] if description["epoch"] is not None else []
        for name in stored:
            file = self._files[slot][name]
            reason = self.schema.mismatch(file, name, description, self.earlier)
            if not reason and not np.array_equal(file.index(), self._files[slot][stored[0]].index()):
                reason = f"its samples are in another order than those of '{stored[0]}'"
            if not reason and file.total() != description["checksums"][name]:
                reason = "its rows have changed since the checkpoint"
            if reason:
                raise StoreError(
                    f'{file.path}: {reason}; resume another checkpoint, one with checkpoint.aux = "copy", '
                    'or set checkpoint.aux = "recompute"'
                )
        if stored:
            self._locate(self._files[slot][stored[0]].index())
        self.slot, self.epoch, self.filled = slot, description["epoch"], filled
        self._sums = dict(description["checksums"])

    def save(self, folder: Path) -> dict[str, str]:
        self._mark()
        return super().save(folder)

    def _save_field(self, name: str, path: Path) -> None:
        try:
            copy_file(self._files[self.slot][name].path, path)
        except OSError as error:
            raise write_failure(path, error, self._file_bytes(name)) from error

    def keep_only(self, fields: Collection[str]) -> None:
        for name in names(self.folder):
            if fnmatch(name, "block-*.h5") and name.rsplit(".", 2)[0] not in fields:
                remove(self.folder / name)

    def _checksum(self, name: str) -> int:
        return self._sums.get(name, 0)

    def _absorb(self, name: str, source: RowFile) -> int:
        file = self._files[self.slot][name]
        set_attributes(file.path, {"complete": 0})
        rows = sum(file.put(first, block) for first, block in source.blocks())
        index = source.index()
        self._sums[name] = wrap(rows + file.put_index(index))
        self._locate(index)
        return self._sums[name]

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        futures: list[Future[Any]] = [*self._writes, *self._reads.values()]
        self._writes.clear()
        self._reads.clear()
        for file in (file for slot in self._files for file in slot.values()):
            file.close()
        for future in futures:
            if self._failure is None and not future.cancelled():
                self._result(future)
