"""Stores on disk with known content, for the tests of resumption and failure."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.store.store import Field

N = 200
FIELDS = [Field("lam", (4, 8), 4), Field("kappa", (4, 8), 4)]
LABELS = {"cut": "1_0", "config": "c0ffee"}


def build(folder: Path, dtype: torch.dtype = torch.float32, labels: dict[str, str] | None = None) -> HdfStore:
    return HdfStore(FIELDS, N, dtype, folder, 1, labels or LABELS)


def write_epoch(store: HdfStore, epoch: int, steps: int | None = None) -> None:
    """An epoch that writes 1000 epoch + sample into every element; only some `steps` of it are not finished."""
    order = np.random.default_rng(epoch).permutation(N)
    batches = [order[first : first + 16] for first in range(0, N, 16)]
    store.start(batches, read=False)
    for step, batch in enumerate(batches[:steps]):
        store.write(step, {field.name: rows_of(epoch, batch) for field in FIELDS})
    if steps is None:
        store.finish(epoch)


def rows_of(epoch: int, batch: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(1000.0 * epoch + batch).float().reshape(-1, 1, 1).expand(-1, 4, 8)


def holds(store: HdfStore, epoch: int) -> bool:
    return torch.equal(store.peek(np.arange(N))["lam"], rows_of(epoch, np.arange(N)))


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
