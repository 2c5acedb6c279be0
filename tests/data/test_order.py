from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcsplit.data.order import batches, epoch_order
from tests.fuzz import examples


@settings(deadline=None, max_examples=examples(50))
@given(seed=st.integers(0, 2**63), epoch=st.integers(0, 10**6), n=st.integers(0, 300))
def test_every_sample_once_and_always_in_the_same_order(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, epoch_order(seed, epoch, n))


def test_order_is_that_of_earlier_versions() -> None:
    assert epoch_order(0, 0, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]


def test_seed_and_epoch_each_change_the_order() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_global_random_state_is_neither_used_nor_changed() -> None:
    def after(global_seed: int) -> tuple[list[int], float]:
        np.random.seed(global_seed)  # noqa: NPY002
        return epoch_order(3, 4, 20).tolist(), np.random.rand()  # noqa: NPY002

    np.random.seed(1)  # noqa: NPY002
    untouched = np.random.rand()  # noqa: NPY002
    assert after(1) == (after(2)[0], untouched)


def test_every_sample_comes_to_every_place() -> None:
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), epoch_order(1, epoch, 6)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


@pytest.mark.parametrize(
    ("last", "n", "sizes"),
    [
        *(("join", n, sizes) for n, sizes in ((0, []), (3, [3]), (4, [4]), (5, [5]), (8, [4, 4]), (9, [4, 5]))),
        *(("drop", n, sizes) for n, sizes in ((0, []), (3, [3]), (4, [4]), (5, [4]), (8, [4, 4]), (9, [4, 4]))),
    ],
)
def test_a_smaller_last_batch_is_joined_or_dropped(last: str, n: int, sizes: list[int]) -> None:
    order = epoch_order(0, 0, n)
    dealt = batches(order, 4, last)
    assert [len(batch) for batch in dealt] == sizes
    assert np.array_equal(np.concatenate([*dealt, order[:0]]), order[: sum(sizes)])


@pytest.mark.parametrize(("n", "sizes"), [(0, []), (3, [3]), (8, [4, 4]), (9, [4, 4, 1])])
def test_last_batch_may_be_smaller(n: int, sizes: list[int]) -> None:
    order = epoch_order(0, 0, n)
    dealt = batches(order, 4)
    assert [len(batch) for batch in dealt] == sizes
    assert np.array_equal(np.concatenate([*dealt, order[:0]]), order)
