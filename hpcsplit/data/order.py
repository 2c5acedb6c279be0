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


def batches(order: np.ndarray, batch_size: int, last: str = "keep") -> list[np.ndarray]:
    """`order` dealt into mini-batches of `batch_size` ids (views of `order`).

    `last` is what becomes of a smaller one at the end: "keep" it, "join" it to the one before, or "drop" it.  The only
    one stays.
    """
    assert batch_size >= 1, f"batch_size = {batch_size}"
    dealt = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if last == "keep" or len(dealt) < 2 or len(dealt[-1]) == batch_size:
        return dealt
    return dealt[:-1] if last == "drop" else [*dealt[:-2], order[batch_size * (len(dealt) - 2) :]]
