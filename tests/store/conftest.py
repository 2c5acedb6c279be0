"""Stores of either kind, closed again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.store.store import MemoryStore, Store
from tests.store.model import FIELDS, Make, N


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Store] = []

    def build(kind: str, dtype: torch.dtype = torch.float32, place: str = "aux", config: str = "c0ffee") -> Store:
        labels = {"cut": "1_0", "config": config}
        if kind == "memory":
            made.append(MemoryStore(FIELDS, N, dtype, 1, labels))
        else:
            made.append(HdfStore(FIELDS, N, dtype, tmp_path / place, 1, labels))
        return made[-1]

    yield build
    for store in made:
        store.close()
