"""The random numbers that a layer may draw: torch's, and those of `random` and `numpy.random`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(key: int) -> None:
    """Begin all of them anew; the same `key`, a whole number from 0 on, begins them the same way."""
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key & (2**32 - 1))  # noqa: NPY002  # that of users' layers, not ours


def drawn_so_far() -> str:
    """Something that changes when a number is drawn, on the CPU."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    return str((hash(random.getstate()), numpy, hash(torch.get_rng_state().numpy().tobytes())))


@contextmanager
def nothing_drawn(device: torch.device | None = None) -> Iterator[None]:
    """Afterwards the random numbers of the CPU, and of a GPU, go on as if nothing had been drawn inside."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device and device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
