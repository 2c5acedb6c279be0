"""Simulated steps against what a pencil says, with costs and links from hand."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest

from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.delayed import Delayed
from hpcsplit.methods.penalty import AugmentedLagrangian, Penalty
from hpcsplit.plan.forecast import forecast
from hpcsplit.plan.profile import CutCost
from hpcsplit.plan.simulate.machine import Machine
from hpcsplit.plan.simulate.study import epoch
from hpcsplit.schedule.timetable import HALVED, Order, course, timetables
from tests.plan.simulate.problems import (
    BATCH,
    EXACT,
    FREE,
    JOIN,
    MAP,
    PARALLEL,
    exact_steps,
    parallel_steps,
    problem,
    step_s,
)

EVEN = [(1.0, 2.0)] * 4
MAP_BYTES = BATCH * 4 * MAP[0] * MAP[1] * MAP[2]


def test_one_rank_takes_the_sum_of_its_blocks() -> None:
    p = problem(EVEN, update_s=0.125, data_s=0.5)
    assert exact_steps(p, ()).length_s == pytest.approx(3 * (12 + 4 * 0.125 + 0.5))
    assert parallel_steps(p, ()).length_s == pytest.approx(3 * (12 + 4 * 0.125 + 0.5))


@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
@pytest.mark.parametrize("stages", [2, 4])
def test_a_pipelined_step_has_the_bubble_of_its_closed_form(stages: int, microbatches: int) -> None:
    cuts = tuple(range(4 // stages, 4, 4 // stages))
    course = exact_steps(problem(EVEN, microbatches=microbatches), cuts)
    piece = 12 / stages / microbatches
    assert course.length_s == pytest.approx(3 * (stages + microbatches - 1) * piece)
    assert course.shares["wait"] == pytest.approx((stages - 1) / (stages + microbatches - 1))


def test_a_parallel_step_of_two_stages_is_as_long_as_the_slower_one() -> None:
    even, last = problem(EVEN), problem([(1.0, 2.0), (2.0, 4.0)])
    # three steps of stage 0, blocks and t_ψ; of stage 1, which begins at once, blocks, t_λ and t_κ
    assert parallel_steps(even, (2,)).length_s == pytest.approx(3 * (6 + JOIN.lam_s + JOIN.kappa_s))
    assert step_s(even, (2,)) == pytest.approx(6 + JOIN.lam_s + JOIN.kappa_s)
    assert step_s(last, (1,)) == pytest.approx(6 + JOIN.lam_s + JOIN.kappa_s)
    assert step_s(problem(EVEN, join=CutCost(psi_s=1.0)), (2,)) == pytest.approx(7)


def test_a_narrow_link_binds_at_its_bandwidth() -> None:
    bandwidth, p = MAP_BYTES / 50, problem(EVEN)  # 50 s for x, and as long for λ the other way at the same time
    machine = Machine(node=1, latency_s=0.0, bandwidth=bandwidth)
    assert step_s(p, (2,), machine) == pytest.approx(50, rel=0.02)
    found = epoch(p, (2,), machine, PARALLEL)
    assert found.binds == "link"
    halved = problem(EVEN, method=Penalty(downsample=2))
    assert step_s(halved, (2,), machine) == pytest.approx(50 / 4, rel=0.1)
    both_back = problem(EVEN, method=AugmentedLagrangian(downsample=1))  # λ and κ
    assert step_s(both_back, (2,), machine) == pytest.approx(100, rel=0.02)


def test_links_inside_a_node_are_others() -> None:
    p, slow = problem(EVEN), MAP_BYTES / 50
    inside = Machine(node=2, latency_s=0.0, bandwidth=slow, inside_latency_s=0.0, inside_bandwidth=0.0)
    assert step_s(p, (1, 2, 3), inside) == pytest.approx(50, rel=0.02)  # the link between stages 1 and 2
    assert step_s(p, (2,), inside) == pytest.approx(step_s(p, (2,)))


def test_latency_delays_a_micro_batch_on_its_way_there_and_back() -> None:
    p, late = problem(EVEN), Machine(node=1, latency_s=0.5, bandwidth=0.0)
    assert exact_steps(p, (2,), late, steps=1).length_s == pytest.approx(12 + 2 * 0.5)


def test_messages_are_put_together_by_their_sender() -> None:
    p = problem(EVEN, packing_s=1 / MAP_BYTES)  # 1 s for an activation or a gradient
    assert exact_steps(p, (2,), steps=1).length_s == pytest.approx(12 + 2)


def test_the_disk_of_a_node_serves_all_its_ranks() -> None:
    p = problem(EVEN)
    speed = MAP_BYTES / 20  # 20 s for the rows of a step to be read, and 20 to be written
    alone, shared = (Machine(node=node, latency_s=0.0, bandwidth=0.0, disk=speed) for node in (1, 4))
    steps = 40
    one_rank, three_ranks = (
        parallel_steps(p, (1, 2, 3), machine, steps=steps).length_s / steps for machine in (alone, shared)
    )
    assert one_rank == pytest.approx(40, rel=0.05)
    assert three_ranks == pytest.approx(3 * 40, rel=0.05)  # the first stage has no rows
    assert parallel_steps(p, (1, 2, 3), shared, steps=steps).shares["store"] > 0.4


def test_a_straggler_holds_up_all_others() -> None:
    slow = Machine(node=1, latency_s=0.0, bandwidth=0.0, straggler=4.0)
    p = problem(EVEN, join=CutCost())
    assert step_s(p, (1, 2, 3), slow) == pytest.approx(4 * step_s(p, (1, 2, 3)))
    found = epoch(p, (1, 2, 3), slow, PARALLEL)
    assert found.binds == "other ranks"


@pytest.mark.parametrize("pieces", [1, 2])
def test_delayed_gradients_keep_all_stages_busy(pieces: int) -> None:
    p = problem(EVEN, method=Delayed(microbatches=pieces), join=CutCost())
    assert step_s(p, (1, 2, 3)) == pytest.approx(3.0)
    assert epoch(p, (2,), FREE, EXACT).step_s == pytest.approx(12.0)


@pytest.mark.parametrize("order", ["1f1b", "zb"])
@pytest.mark.parametrize("microbatches", [1, 2, 4, 8])
def test_weight_gradients_fill_the_waits_of_exact_epochs(order: Order, microbatches: int) -> None:
    """As in the timetable, whose stages take as long; with at least as many micro-batches as stages ZB-H1's bubble."""
    p = problem([(8.0, 16.0)] * 4, microbatches=microbatches, weights=0.5, order=order)
    found, unit = exact_steps(p, (1, 2, 3), steps=1).length_s, 8.0 / microbatches
    assert found == pytest.approx(course(timetables(order, 4, microbatches), HALVED).length * unit)
    assert forecast(p.profile, (1, 2, 3), None, exact=Backprop(order=order)).exact_s == pytest.approx(found)
    if microbatches >= 4:
        assert found == pytest.approx((3 * microbatches + 3) * unit)


def test_weight_gradients_do_not_wait_on_one_rank() -> None:
    p = problem(EVEN, microbatches=2, weights=0.5)
    assert {span.kind for span in exact_steps(p, (), steps=1).spans} == {"forward", "backward"}
    assert forecast(p.profile, (), None).exact_s == exact_steps(p, (), steps=1).length_s == 12.0


def test_nobody_does_two_things_at_once_or_nothing_without_a_name() -> None:
    course = parallel_steps(problem(EVEN, update_s=0.1, data_s=0.3, packing_s=1e-4), (1, 3), Machine(node=2), steps=4)
    by_rank = defaultdict(list)
    for span in course.spans:
        by_rank[span.rank].append(span)
    for spans in by_rank.values():
        assert spans[0].start == 0
        assert all(before.end == after.start for before, after in pairwise(spans))
        assert spans[-1].end == course.length_s
    assert sum(course.shares.values()) == pytest.approx(1.0)


def test_a_simulation_is_the_same_every_time() -> None:
    machine = Machine(node=2, disk=1e5, straggler=1.25)
    p = problem([(1.0, 2.5), (0.7, 1.1), (2.0, 3.0), (1.0, 1.0)], microbatches=4, update_s=0.01, packing_s=1e-5)
    for steps_of in (parallel_steps, exact_steps):
        first, again = (steps_of(p, (1, 2, 3), machine, steps=5) for _ in range(2))
        assert first.spans == again.spans
        assert first.traffic == again.traffic
