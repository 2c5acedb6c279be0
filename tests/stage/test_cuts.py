"""The dynamic programme equals trying every cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcsplit.errors import ConfigError
from hpcsplit.stage.cuts import balanced_cuts, charged, quick_cuts, ranges, recut, stage_shares
from tests.fuzz import examples


def largest(costs: Sequence[float], cuts: tuple[int, ...]) -> float:
    return max(sum(costs[part.start : part.stop]) for part in ranges(cuts, len(costs)))


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.data())
def test_equals_brute_force(costs: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    cuts = balanced_cuts(costs, stages)
    assert cuts == min(combinations(range(1, len(costs)), stages - 1), key=lambda cuts: order_of(costs, cuts))


def order_of(costs: Sequence[float], cuts: tuple[int, ...]) -> tuple[float, float, tuple[int, ...]]:
    """Which of two cuts comes first: by the largest stage, then the sum of squares, then the earlier cuts."""
    parts = [sum(costs[part.start : part.stop]) for part in ranges(cuts, len(costs))]
    return max(parts), sum(part**2 for part in parts), cuts


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=8), st.data())
def test_equals_brute_force_with_the_cost_of_cuts(both: list[tuple[int, int]], data: st.DataObject) -> None:
    costs, cut_costs = [list(each) for each in zip(*both, strict=True)]
    stages = data.draw(st.integers(1, len(costs)))
    found = balanced_cuts(costs, stages, cut_costs)
    slowest = partial(slowest_of, costs, cut_costs)
    assert slowest(found) == min(map(slowest, combinations(range(1, len(costs)), stages - 1)))
    assert largest(list(charged(costs, found, cut_costs)), found) == slowest(found)


def slowest_of(costs: list[int], cut_costs: list[int], cuts: tuple[int, ...]) -> float:
    return max(
        sum(costs[part.start : part.stop])
        + (cut_costs[part.start] if part.start else 0)
        + (cut_costs[part.stop] if part.stop < len(costs) else 0)
        for part in ranges(cuts, len(costs))
    )


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.data())
def test_quick_cuts_are_the_best_where_cuts_cost_nothing(costs: list[int], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    assert largest(costs, quick_cuts(costs, stages)) == largest(costs, balanced_cuts(costs, stages))


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=20), st.data())
def test_quick_cuts_know_what_cuts_cost(both: list[tuple[int, int]], data: st.DataObject) -> None:
    costs, cut_costs = [list(each) for each in zip(*both, strict=True)]
    stages = data.draw(st.integers(1, len(costs)))
    best, found = balanced_cuts(costs, stages, cut_costs), quick_cuts(costs, stages, cut_costs)
    assert slowest_of(costs, cut_costs, found) <= slowest_of(costs, cut_costs, best) + 2 * max(cut_costs)


def test_quick_cuts_by_hand() -> None:
    assert quick_cuts([3, 3, 3, 3], 2) == (2,)
    assert quick_cuts([3, 3, 3, 3], 2, [0, 8, 8, 1]) == (3,)
    assert quick_cuts([2, 2, 2, 2], 2, [0, 1, 5, 1]) in ((1,), (3,))
    assert quick_cuts([9, 1, 1, 1], 3) == (1, 3)
    assert len(quick_cuts([1 + i % 3 for i in range(20_000)], 1024)) == 1023


def test_a_cheaper_boundary_is_worth_a_worse_balance() -> None:
    assert balanced_cuts([3, 3, 3, 3], 2) == (2,)
    assert balanced_cuts([3, 3, 3, 3], 2, [0, 8, 8, 1]) == (3,)


def test_cuts_are_corrected_by_what_the_stages_have_taken() -> None:
    better, factor = recut([1.0] * 8, (4,), [3.0, 1.0])  # the first stage's device is three times as slow
    assert better == (3,)
    assert factor == pytest.approx(3 / 2.25)
    same, even = recut([1.0] * 8, (4,), [2.0, 2.0])
    assert same == (4,)
    assert even == pytest.approx(1.0)


@settings(max_examples=examples(50), deadline=None)
@given(st.lists(st.floats(0, 1e3) | st.floats(0, 0.1), min_size=3, max_size=8))
def test_equals_brute_force_in_floating_point(costs: list[float]) -> None:
    best = min(largest(costs, candidate) for candidate in combinations(range(1, len(costs)), 2))
    assert largest(costs, balanced_cuts(costs, 3)) == pytest.approx(best, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    ("costs", "stages", "cuts"),
    [
        ([1] * 7, 1, ()),
        ([1] * 7, 2, (3,)),
        ([1] * 7, 3, (2, 4)),
        ([1] * 7, 7, (1, 2, 3, 4, 5, 6)),
        ([9, 1, 1, 1], 2, (1,)),
        ([1, 1, 1, 9], 2, (3,)),
        ([0, 0, 0], 3, (1, 2)),
        ([0.5, 0.25, 0.25, 1.0], 2, (3,)),
        ([0.03, 0.01, 0.01, 0.01, 0.04], 2, (3,)),
        ([0.01] * 8, 4, (2, 4, 6)),
    ],
)
def test_known_cuts(costs: list[float], stages: int, cuts: tuple[int, ...]) -> None:
    assert balanced_cuts(costs, stages) == cuts


def test_many_blocks_and_stages_are_quick() -> None:
    assert len(balanced_cuts([1 + i % 3 for i in range(600)], 64)) == 63


@pytest.mark.parametrize("cutting", [balanced_cuts, quick_cuts])
def test_more_stages_than_blocks_are_refused(cutting: Callable[..., object]) -> None:
    said = "5 stages need at least 5 blocks, but the network has 3; start at most 3 ranks"
    with pytest.raises(ConfigError, match=said):
        cutting([1, 1, 1], 5)


@pytest.mark.parametrize("costs", [[1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_costs_are_finite_and_not_negative(costs: list[float]) -> None:
    with pytest.raises(AssertionError):
        balanced_cuts(costs, 2)


def test_ranges() -> None:
    assert ranges((3, 6), 8) == (range(3), range(3, 6), range(6, 8))
    assert ranges((), 4) == (range(4),)


@pytest.mark.parametrize("cut", [8, 9])
def test_a_cut_behind_the_last_block_is_refused(cut: int) -> None:
    with pytest.raises(ConfigError, match=rf"has 8 blocks, numbered 0 to 7, .* block {cut}"):
        ranges((3, cut), 8)


@pytest.mark.parametrize("cuts", [(0,), (2, 2), (3, 1), (-1,)])
def test_every_block_belongs_to_one_stage(cuts: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        ranges(cuts, 4)


def test_shares() -> None:
    assert stage_shares([1, 1, 2, 4], (2, 3)) == (0.25, 0.25, 0.5)
    with pytest.raises(AssertionError):
        stage_shares([0, 0], (1,))
