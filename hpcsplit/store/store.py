"""The store of a stage's per-sample variables: what it promises, and the version that keeps them in memory.

A variable has two generations.  An epoch reads generation g in its own random order and writes generation g + 1 as it
goes, in the order of its visits; at its end all variables of the stage switch to g + 1 together:

    slot 0   [ g:     read at random    ]  ->  [ g + 2: written in order ]
    slot 1   [ g + 1: written in order  ]  ->  [ g + 1: read at random   ]

So a run killed at any moment still has a whole generation, and a checkpoint may point at it instead of copying it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcsplit.errors import CheckpointError, StoreError
from hpcsplit.files.atomic import sha256_file
from hpcsplit.files.hdf5 import dtype_name, rows_layout
from hpcsplit.host.device import download
from hpcsplit.store.generation import Field, Schema, Visits, generation_bytes
from hpcsplit.store.rowfile import RowFile, checksum, narrowed, row_bytes, wrap, write_rows

__all__ = ["Field", "MemoryStore", "Store", "generation_bytes"]

Labels = Mapping[str, str]  # attributes that every file of the stage must have, such as the hash of the configuration
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Store(ABC):
    """Rows of every field for the samples 0 .. rows - 1, kept as `dtype`, given and taken as float32.

    An epoch is `start`, then `read` and `write` for each step, then `finish`; everything else happens between epochs.
    `pause` ends an epoch early, and `start` with `first` takes it up again.
    Any call may raise a failure of an earlier one that was still under way (StoreError); then only `close` is left.
    """

    def __init__(
        self, fields: Sequence[Field], rows: int, dtype: torch.dtype, stage: int = 0, labels: Labels | None = None
    ) -> None:
        assert dtype in DTYPES, f"a store of {dtype}"
        assert rows > 0, f"a store of {rows} rows"
        assert len({field.name for field in fields}) == len(fields), "two fields of one name"
        self.schema = Schema({field.name: field for field in fields}, rows, dtype, stage, dict(labels or {}))
        self.earlier: Labels = {}  # labels of rows that an earlier part of the run has left, where they are others
        self.fields = self.schema.fields
        self.rows, self.dtype = rows, dtype
        self.slot = 0  # of the current generation
        self.epoch: int | None = None  # that wrote the current generation; None before the first
        self.filled: dict[str, float] = {}  # fields whose current generation is a constant
        self.alarm: Callable[[Exception], None] = lambda error: None  # told at once what the store's thread fails with
        self.io_wait_s = 0.0  # seconds the caller has spent in start, read, write and finish
        self._protected: int | None = None
        self._visits: Visits | None = None

    # ------------------------------------------------------------------------------------------------ an epoch

    def start(self, batches: Sequence[np.ndarray], *, first: int = 0, read: bool = True, write: bool = True) -> None:
        """Begin an epoch over these mini-batches of sample ids, which together are 0 .. rows - 1, each once.

        With `read` the rows of the first batches are fetched at once; without it the epoch writes only (a refresh).
        Without `write` it reads only, and the current generation stays.  The batches before number `first` have been
        visited before a `pause`: the first write takes their rows along.
        """
        assert self._visits is None, "the epoch before is not finished"
        kept = self._protected == 1 - self.slot
        assert not (write and kept), f"a checkpoint refers to slot {1 - self.slot}, it stays as it is"
        assert not read or self.epoch is not None or not self._stored(), "nothing is stored yet"
        visits = Visits(batches, self.rows, read, write, first)
        with self._waiting():
            self._begin(visits)
        self._visits = visits

    def read(self, step: int) -> dict[str, torch.Tensor]:
        """The current rows of the samples of batch `step`: (B, *shape) float32 on the CPU, the caller's to keep.

        Steps come in increasing order; a step may be left out.
        """
        visits = self._running()
        visits.note_read(step)
        with self._waiting():
            values = self._fetch(visits, step) if self._stored() else {}
        return values | self._constants(len(visits.batches[step]))

    def peek(self, ids: np.ndarray) -> dict[str, torch.Tensor]:
        """The current rows of any samples (B,), float32 (B, *shape) on the CPU.  Between epochs only."""
        self._resting()
        assert self.epoch is not None or not self._stored(), "nothing is stored yet"
        return self._look_up(ids, self._stored()) | self._constants(len(ids))

    def write(self, step: int, values: Mapping[str, torch.Tensor]) -> None:
        """The next rows of the samples of batch `step`, (B, *shape) for each field; the tensors may not change then.

        A field that is a constant now may be left out, then in every batch of the epoch, and stays that constant.
        Those on a GPU are copied to the host behind what its current stream has been given.
        """
        visits = self._running()
        absent = self.fields.keys() - values.keys() - self.filled.keys()
        assert not absent, f"{sorted(absent)} must be written, they are no constants"
        for name, value in values.items():
            wanted = (len(visits.batches[step]), *self.fields[name].shape)
            assert tuple(value.shape) == wanted, f"'{name}' of batch {step}: shape {tuple(value.shape)}, not {wanted}"
        before, visits.before = visits.before, range(0)
        self._carry_over(before, list(values))  # only now it is known which constants become rows
        visits.note_write(step, frozenset(values))
        with self._waiting():
            self._put(visits, step, *_host_copies(values))

    def finish(self, epoch: int) -> None:
        """Wait until all is written; what epoch number `epoch` wrote becomes the current generation."""
        visits = self._running()
        if not visits.writes:
            self._visits = None
            return
        visits.check_complete()
        with self._waiting():
            self._commit(visits)
        self.slot, self.epoch = 1 - self.slot, epoch
        self.filled = {name: value for name, value in self.filled.items() if name not in visits.names}
        self._visits = None

    def pause(self, epoch: int) -> None:
        """End the epoch between two steps: the current generation then has the new rows of the samples visited and the
        old rows of the others."""
        visits = self._running()
        if visits.written:
            self._carry_over(sorted(set(range(len(visits.batches))) - visits.written), sorted(visits.names))
        else:
            visits.writes = False
        self.finish(epoch)

    def _carry_over(self, steps: Iterable[int], names: list[str]) -> None:
        """Write the rows of these batches as they are, constants too."""
        visits = self._running()
        stored = [name for name in names if name not in self.filled]
        for step in steps:
            ids = visits.batches[step]
            rows = self._look_up(ids, stored) | self._constants(len(ids))
            self.write(step, {name: rows[name] for name in names})

    def fill(self, name: str, value: float) -> None:
        """Make the current generation of one field this constant; nothing is written."""
        self._resting()
        assert name in self.fields, f"no field '{name}'"
        self.filled[name] = float(value)

    def protect(self, slot: int | None) -> None:
        """A checkpoint refers to the generation in `slot` (None: to none): `start` refuses to overwrite it."""
        self._protected = slot

    # ------------------------------------------------------------------------------------------------ checkpoints

    def describe(self) -> dict[str, Any]:
        """What finds the current generation again, as JSON: for the manifest of a checkpoint."""
        self._resting()
        return {
            "slot": self.slot,
            "epoch": self.epoch,
            "rows": self.rows,
            "dtype": dtype_name(self.dtype),
            "filled": dict(self.filled),
            "checksums": {name: self._checksum(name) for name in self._stored()},
            "boundaries": {name: field.boundary for name, field in self.fields.items()},
        }

    @abstractmethod
    def sync(self) -> None:
        """Return when the current generation would survive a crash of the machine."""

    @abstractmethod
    def adopt(self, description: Mapping[str, Any]) -> None:
        """Take up the described generation, left in this store's own place by an earlier run.

        Fields that are not described become constants (0).  StoreError, with what differs, when a described one is not
        there whole.
        """

    def save(self, folder: Path) -> dict[str, str]:
        """Write the current generation into `folder`, one HDF5 file for each field that is no constant.

        Their content is durable, their names are after `fsync_dir`.  Each has been read back and has what was written.
        Returns the SHA-256 of each file by its name.  StoreError when it has no room.
        """
        self._resting()
        description, sums = self.describe(), {}
        for name in self._stored() if self.epoch is not None else []:
            path = Path(folder) / self.schema.saved_name(name)
            self._save_field(name, path)
            sums[path.name] = sha256_file(path)
            try:
                reason = self._difference(path, name, description, RowFile.total)
            except CheckpointError as error:
                reason = str(error)
            if reason:
                raise StoreError(f"{path} is not what was written: {reason}; check the disk, then start again")
        return sums

    def restore(self, folder: Path, description: Mapping[str, Any]) -> None:
        """The reverse of `save`, by a store of either kind.  CheckpointError, with what differs, on damage."""
        self._resting()
        self.schema.check(description, CheckpointError, Path(folder))
        self.slot, self.epoch, self.filled = 0, description["epoch"], self._constants_of(description)
        for name in self._stored() if self.epoch is not None else []:
            path = Path(folder) / self.schema.saved_name(name)
            reason = self._difference(path, name, description, partial(self._absorb, name))
            if reason:
                raise CheckpointError(
                    f'{path}: {reason}; resume another checkpoint or set checkpoint.aux = "recompute"'
                )

    def _difference(
        self, path: Path, name: str, description: Mapping[str, Any], total: Callable[[RowFile], int]
    ) -> str:
        """Why a saved file is not the described generation, or ""; `total` reads its rows and gives their checksum."""
        with closing(RowFile(path, rows_layout(path), writable=False)) as source:
            reason = self.schema.mismatch(source, name, description, self.earlier)
            if not reason and total(source) != description["checksums"][name]:
                reason = "its rows have changed since they were written"
        return reason

    def keep_only(self, fields: Collection[str]) -> None:  # noqa: B027
        """Other cuts than before: drop what is kept of fields with none of these names (`Field.file_stem`)."""

    def close(self) -> None:  # noqa: B027
        """Let go of files and threads, whatever is under way.  Raises a failure that no call has raised yet."""

    # ------------------------------------------------------------------------------------------------ what the kinds do

    def _begin(self, visits: Visits) -> None:  # noqa: B027
        """What must be done before the first step."""

    @abstractmethod
    def _fetch(self, visits: Visits, step: int) -> dict[str, torch.Tensor]: ...

    @abstractmethod
    def _look_up(self, ids: np.ndarray, names: list[str]) -> dict[str, torch.Tensor]: ...

    @abstractmethod
    def _put(self, visits: Visits, step: int, values: Mapping[str, torch.Tensor], arrive: Callable[[], None]) -> None:
        """Write values (on the host) that are there when `arrive` has returned."""

    def _commit(self, visits: Visits) -> None:  # noqa: B027
        """What must be done behind the last step."""

    @abstractmethod
    def _save_field(self, name: str, path: Path) -> None:
        """Write the current generation of one stored field to a new file, durably."""

    @abstractmethod
    def _checksum(self, name: str) -> int:
        """The checksum of one stored field as `save` writes it."""

    @abstractmethod
    def _absorb(self, name: str, source: RowFile) -> int:
        """Take over the rows of a saved file; the checksum of what was found."""

    def _stored(self) -> list[str]:
        return [name for name in self.fields if name not in self.filled]

    def _constants(self, count: int) -> dict[str, torch.Tensor]:
        return {name: torch.full((count, *self.fields[name].shape), value) for name, value in self.filled.items()}

    def _constants_of(self, description: Mapping[str, Any]) -> dict[str, float]:
        return dict(description["filled"]) | dict.fromkeys(self.schema.absent(description), 0.0)

    def _running(self) -> Visits:
        assert self._visits is not None, "no epoch has been started"
        return self._visits

    def _resting(self) -> None:
        assert self._visits is None, "an epoch is under way"

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.io_wait_s += time.perf_counter() - began


def _host_copies(values: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Callable[[], None]]:
    """The values on the host, from a GPU in pinned memory, and what waits until they are there."""
    copies = {name: download(value) for name, value in values.items()}

    def arrive() -> None:
        for _, arrival in copies.values():
            arrival.synchronize()

    return {name: here for name, (here, _) in copies.items()}, arrive


class MemoryStore(Store):
    """The rows in memory by sample; one copy serves both generations, since an epoch visits a sample once."""

    def __init__(
        self, fields: Sequence[Field], rows: int, dtype: torch.dtype, stage: int = 0, labels: Labels | None = None
    ) -> None:
        super().__init__(fields, rows, dtype, stage, labels)
        self._values = {field.name: torch.zeros((rows, *field.shape), dtype=dtype) for field in fields}

    def sync(self) -> None:
        self._resting()

    def adopt(self, description: Mapping[str, Any]) -> None:
        raise StoreError(
            "auxiliary variables in memory end with the process, so none are left to take up; "
            'use store.kind = "hdf5", or checkpoint.aux = "copy" or "recompute"'
        )

    def _save_field(self, name: str, path: Path) -> None:
        write_rows(path, self._values[name], self.schema.attributes(name, self.epoch, None, self._checksum(name)))

    def _fetch(self, visits: Visits, step: int) -> dict[str, torch.Tensor]:
        return self._look_up(visits.batches[step], self._stored())

    def _look_up(self, ids: np.ndarray, names: list[str]) -> dict[str, torch.Tensor]:
        where = torch.from_numpy(ids)
        return {name: self._values[name].index_select(0, where).to(torch.float32) for name in names}

    def _put(self, visits: Visits, step: int, values: Mapping[str, torch.Tensor], arrive: Callable[[], None]) -> None:
        arrive()
        samples = torch.from_numpy(visits.batches[step])
        for name, value in values.items():
            self._values[name].index_copy_(0, samples, narrowed(value, self.dtype, self.fields[name].file_stem))

    def _checksum(self, name: str) -> int:
        index = np.arange(self.rows).view(np.uint8).reshape(-1, 8)
        return wrap(checksum(row_bytes(self._values[name]), 0) + checksum(index, 0))

    def _absorb(self, name: str, source: RowFile) -> int:
        index, total = source.index(), 0
        for first, block in source.blocks():
            total += checksum(row_bytes(block), first)
            self._values[name].index_copy_(0, torch.from_numpy(index[first : first + len(block)]), block)
        return wrap(total + checksum(index.view(np.uint8).reshape(-1, 8), 0))
