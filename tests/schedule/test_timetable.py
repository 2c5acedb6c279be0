"""The order of micro-batches, followed without MPI."""

from __future__ import annotations

import pytest

from hpcsplit.schedule.timetable import ORDERS, Order, Work, course, in_flight, timetable

SIZES = [(stages, microbatches) for stages in range(1, 9) for microbatches in (1, 2, 3, 4, 7, 8, 16)]


def tables(order: Order, stages: int, microbatches: int) -> list[list[Work]]:
    return [timetable(order, k, stages, microbatches) for k in range(stages)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("stages", "microbatches"), SIZES)
def test_every_pipeline_ends_in_the_shortest_time(order: Order, stages: int, microbatches: int) -> None:
    everyone = tables(order, stages, microbatches)
    for works in everyone:
        assert sorted(works) == sorted(Work(kind, m) for kind in ("F", "B") for m in range(microbatches))
        assert [w.microbatch for w in works if w.kind == "B"] == list(range(microbatches))  # the order of the sums
    for forward, backward in ((1, 1), (1, 2), (2, 3)):
        found = course(everyone, forward=forward, backward=backward)
        assert found.length == (stages + microbatches - 1) * (forward + backward)  # bubble of (K - 1) / (K + M - 1)


@pytest.mark.parametrize(("stages", "microbatches"), SIZES)
def test_activations_in_flight(stages: int, microbatches: int) -> None:
    early = course(tables("1f1b", stages, microbatches)).in_flight
    assert list(early) == [min(stages - k, microbatches) for k in range(stages)]
    late = course(tables("gpipe", stages, microbatches)).in_flight
    assert list(late) == [1 if stages == 1 else microbatches] * stages
    assert list(early) == [in_flight("1f1b", k, stages, microbatches) for k in range(stages)]
    assert list(late) == [in_flight("gpipe", k, stages, microbatches) for k in range(stages)]


def test_stages_that_wait_for_each_other_are_named() -> None:
    first, last = tables("1f1b", 2, 2)
    first = [Work("B", 0), *[work for work in first if work != Work("B", 0)]]
    with pytest.raises(ValueError, match="wait for each other: stage 0 at B0, stage 1 at F0"):
        course([first, last])


def test_the_picture() -> None:
    assert course(tables("1f1b", 2, 3)).drawn().splitlines() == [
        "stage 0   F0 F1 .  .  B0 -  F2 B1 -  .  B2 -",
        "stage 1   .  F0 B0 -  F1 B1 -  F2 B2 -  .  .",
    ]
