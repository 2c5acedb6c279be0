"""In which order samples are visited: every rank computes it for itself, so nobody has to be told.

Random numbers are raw words of Philox and a permutation is their rank order.  numpy promises the words for all its
versions (it does not promise `Generator.permutation`), so a run resumed elsewhere sees the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def permutation(key: Sequence[int], n: int) -> np.ndarray:
    """0 .. n-1 in an order, int64 (n,), that depends on `key` (numbers from 0) and `n` alone."""
    words = np.random.Philox(np.random.SeedSequence(tuple(key))).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The sample ids 0 .. n-1 in the order of one epoch, int64 (n,); a pure function of its arguments."""
    return permutation((seed, epoch), n)


def batches(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """`order` dealt into mini-batches of `batch_size` ids (views of `order`); the last may be smaller."""
    assert batch_size >= 1, f"batch_size = {batch_size}"
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
