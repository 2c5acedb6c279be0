"""One generation of a stage's variables: its fields, the epoch that writes it, the attributes that identify it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcsplit.errors import CheckpointError, StoreError
from hpcsplit.files.hdf5 import Attribute, dtype_name, read_attributes
from hpcsplit.store.rowfile import RowFile

_INDEX_BYTES = 8


@dataclass(frozen=True)
class Field:
    """One per-sample variable before block `boundary` of the whole network (the number of blocks: at its end);
    `shape` is that of one sample's row.  Files are named by the boundary, so that other cuts find them again."""

    name: str
    shape: tuple[int, ...]
    boundary: int = 0

    @property
    def file_stem(self) -> str:
        return f"block-{self.boundary:03d}.{self.name}"


def generation_bytes(fields: Sequence[Field], rows: int, dtype: torch.dtype) -> int:
    """Bytes of one generation of all fields: rows and index."""
    return sum(rows * (math.prod(field.shape) * dtype.itemsize + _INDEX_BYTES) for field in fields)


def no_room(
    folder: Path, whose: str, needed: int, free: int, dtype: torch.dtype, own: Sequence[str] = ()
) -> StoreError:
    """The failure of a store that its disk has no room for; `own` are the method's cures."""
    half = ['store.dtype = "float16"'] * (dtype == torch.float32)
    cures = ", ".join(["set store.path to a larger disk", *half, *own, "or use fewer samples (data.limit_train)"])
    return StoreError(f"{folder}: the store of {whose} needs {needed} bytes, {free} are free; {cures}")


class Visits:
    """One epoch: its mini-batches in order, and which of them have been read and written."""

    def __init__(
        self, batches: Sequence[np.ndarray], rows: int, reads: bool, writes: bool = True, first: int = 0
    ) -> None:
        self.batches = [np.asarray(batch, np.int64) for batch in batches]
        self.order = np.concatenate(self.batches)
        assert np.array_equal(np.sort(self.order), np.arange(rows)), f"not each of {rows} samples is visited once"
        self.firsts: list[int] = np.cumsum([0, *map(len, self.batches)]).tolist()  # position of a batch's first row
        self.reads, self.writes, self.first = reads, writes, first
        self.before = range(first)  # batches whose rows must still be taken along
        self.last_read = first - 1
        self.written: set[int] = set()
        self.names: frozenset[str] = frozenset()  # the fields that this epoch writes

    def note_read(self, step: int) -> None:
        assert self.reads, "this epoch was started with read=False"
        assert self.last_read < step < len(self.batches), f"batch {step} is read after batch {self.last_read}"
        self.last_read = step

    def note_write(self, step: int, names: frozenset[str]) -> None:
        assert self.writes, "this epoch was started with write=False"
        assert 0 <= step < len(self.batches), f"batch {step} of {len(self.batches)}"
        assert step not in self.written, f"batch {step} is written twice"
        assert not self.written or names == self.names, f"{sorted(names)} after {sorted(self.names)} in one epoch"
        self.written.add(step)
        self.names = names

    def check_complete(self) -> None:
        missing = sorted(set(range(len(self.batches))) - self.written)
        assert not missing, f"batches {missing[:5]} are not written"


@dataclass(frozen=True)
class Schema:
    """What all files of a stage have in common: a generation belongs to a run when these agree."""

    fields: Mapping[str, Field]
    rows: int
    dtype: torch.dtype
    stage: int
    labels: Mapping[str, str]

    def saved_name(self, name: str) -> str:
        """The file name of one field in a checkpoint."""
        return f"aux-{self.fields[name].file_stem}.h5"

    def attributes(self, name: str, epoch: int | None, fill: float | None, checksum: int) -> dict[str, Attribute]:
        """The attributes of a file that holds a whole generation of one field; `fill` is the constant it is, if any."""
        return {
            "complete": 1,
            **self.labels,
            "variable": name,
            "boundary": self.fields[name].boundary,
            "rows": self.rows,
            "shape": ",".join(map(str, self.fields[name].shape)),
            "dtype": dtype_name(self.dtype),
            "epoch": -1 if epoch is None else epoch,
            "fill": math.nan if fill is None else fill,
            "checksum": checksum,
        }

    def check(self, description: Mapping[str, Any], error: type[CheckpointError | StoreError], place: Path) -> None:
        """Raise `error` when the described generation has another size or type than this run's."""
        for key, here in (("rows", self.rows), ("dtype", dtype_name(self.dtype))):
            if description.get(key) != here:
                raise error(
                    f"{place}: the checkpoint's auxiliary variables have {key} {description.get(key)}, this run has "
                    f'{here}; resume with the configuration of that run, or with checkpoint.aux = "recompute"'
                )

    def absent(self, description: Mapping[str, Any]) -> list[str]:
        """The fields that the description does not have."""
        return [
            name for name in self.fields if name not in description["checksums"].keys() | description["filled"].keys()
        ]

    def mismatch(self, file: RowFile, name: str, description: Mapping[str, Any], earlier: Mapping[str, str]) -> str:
        """Why the file cannot be the described generation, or "".  Its rows are not looked at.  Labels may also be
        those of an `earlier` part of the run."""
        here = (self.rows, self.fields[name].shape, self.dtype)
        there = (file.layout.rows, file.layout.row_shape, file.layout.dtype)
        if there != here:
            return f"its rows, shape and type are {there}, this run has {here}"
        wanted = self.attributes(name, description["epoch"], None, description["checksums"][name])
        result = read_attributes(file.path)
        for key, value in wanted.items():
            if key != "fill" and result.get(key) not in (value, earlier.get(key, value)):
                return f"its {key} is {result.get(key)!r}, {value!r} is wanted"
        if not np.array_equal(np.sort(file.index()), np.arange(self.rows)):
            return "its index does not name every sample once"
        return ""
