"""The order of micro-batches, followed without MPI."""

from __future__ import annotations

import pytest

from hpcsplit.schedule.timetable import (
    HALVED,
    ORDERS,
    Order,
    Passes,
    Work,
    course,
    in_flight,
    timetable,
    timetables,
    unawaited,
    waiting,
)

SIZES = [(stages, microbatches) for stages in range(1, 9) for microbatches in (1, 2, 3, 4, 7, 8, 16)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("stages", "microbatches"), SIZES)
def test_every_pipeline_ends_in_the_shortest_time(order: Order, stages: int, microbatches: int) -> None:
    everyone = timetables(order, stages, microbatches)
    for works in everyone:
        assert sorted(works) == sorted(Work(kind, m) for kind in ("F", "B") for m in range(microbatches))
        assert [w.microbatch for w in works if w.kind == "B"] == list(range(microbatches))  # the order of the sums
    for forward, backward in ((1, 1), (1, 2), (2, 3)):
        found = course(everyone, Passes(forward, backward))
        assert found.length == (stages + microbatches - 1) * (forward + backward)  # bubble of (K - 1) / (K + M - 1)


@pytest.mark.parametrize(("stages", "microbatches"), SIZES)
def test_activations_in_flight(stages: int, microbatches: int) -> None:
    early = course(timetables("1f1b", stages, microbatches)).in_flight
    assert list(early) == [min(stages - k, microbatches) for k in range(stages)]
    more = course(timetables("zb", stages, microbatches)).in_flight
    assert list(more) == [min(2 * (stages - k) - 1, microbatches) for k in range(stages)]
    assert list(more) == [in_flight("zb", k, stages, microbatches) for k in range(stages)]
    late = course(timetables("gpipe", stages, microbatches)).in_flight
    assert list(late) == [1 if stages == 1 else microbatches] * stages
    assert list(early) == [in_flight("1f1b", k, stages, microbatches) for k in range(stages)]
    assert list(late) == [in_flight("gpipe", k, stages, microbatches) for k in range(stages)]


def test_stages_that_wait_for_each_other_are_named() -> None:
    first, last = timetables("1f1b", 2, 2)
    first = [Work("B", 0), *[work for work in first if work != Work("B", 0)]]
    with pytest.raises(ValueError, match="wait for each other: stage 0 at B0, stage 1 at F0"):
        course([first, last])


@pytest.mark.parametrize("order", ["1f1b", "zb"])
@pytest.mark.parametrize(("stages", "microbatches"), [(k, m) for k, m in SIZES if m >= k])
def test_weight_gradients_that_wait_leave_the_bubble_of_zb_h1(order: Order, stages: int, microbatches: int) -> None:
    """(K - 1)(F + B - W), Qi et al., Table 1; and no stage keeps more than the first one of 1F1B, with one waiting."""
    tables = timetables(order, stages, microbatches)
    found = course(tables, HALVED)
    assert found.length == 3 * microbatches + (stages - 1)
    for k, starts in enumerate(found.starts):
        whole = unawaited(k, tables[k])
        ends = {w.microbatch: at for w, at in starts.items() if w.kind == ("B" if w.microbatch in whole else "W")}
        assert sorted(ends, key=lambda m: ends[m]) == list(range(microbatches))  # the order of the sums
        kept = [sum(s <= at < ends[w.microbatch] for w, s in starts.items() if w.kind == "F") for at in ends.values()]
        assert max(kept) <= in_flight(order, k, stages, microbatches) + waiting(k, tables[k])
    if order == "1f1b":
        most = {in_flight(order, k, stages, microbatches) + waiting(k, works) for k, works in enumerate(tables)}
        assert most <= {stages, stages + 1}


def test_a_backward_pass_that_no_stage_waits_for_is_whole() -> None:
    """Of the first stage, once it has passed all micro-batches forward; a stage behind it is waited for to the end."""
    whole = {order: [unawaited(k, works) for k, works in enumerate(timetables(order, 2, 4))] for order in ORDERS}
    assert whole == {"1f1b": [{2, 3}, set()], "gpipe": [{0, 1, 2, 3}, set()], "zb": [{1, 2, 3}, set()]}
    assert [waiting(0, works) for works in (timetable("1f1b", 0, 2, m) for m in (1, 2, 3, 8))] == [0, 0, 1, 1]


def test_what_waits_is_bounded() -> None:
    """With one micro-batch's a stage in the middle must do them before it sends the next gradient on."""
    few, more = (course(timetables("1f1b", 4, 8), HALVED, most).length for most in (1, 0))
    assert (few, more) == (29, 27)
    assert course(timetables("1f1b", 4, 8), HALVED, 8).length == more


def test_more_in_flight_fills_what_weight_gradients_leave() -> None:
    """Where they are shorter than the other passes."""
    uneven = Passes(10, 20, 8)
    early, more = (course(timetables(order, 4, 8), uneven).length for order in ("1f1b", "zb"))
    assert more < early


def test_the_picture() -> None:
    assert course(timetables("1f1b", 2, 3)).drawn().splitlines() == [
        "stage 0   F0 F1 .  .  B0 -  F2 B1 -  .  B2 -",
        "stage 1   .  F0 B0 -  F1 B1 -  F2 B2 -  .  .",
    ]
    assert course(timetables("1f1b", 2, 3), HALVED).drawn().splitlines() == [
        "stage 0   F0 F1 .  B0 F2 W0 B1 -  B2 -",
        "stage 1   .  F0 B0 F1 B1 F2 B2 W0 W1 W2",
    ]
