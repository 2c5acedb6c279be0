"""Small problems with costs from hand: blocks of vectors or of feature maps, all alike or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import TrainingMethod
from hpcsplit.methods.penalty import Penalty
from hpcsplit.plan.blocks import BlockTime
from hpcsplit.plan.profile import CutCost, Profile
from hpcsplit.plan.simulate.dry import Problem
from hpcsplit.plan.simulate.machine import Machine
from hpcsplit.plan.simulate.study import Replayed, epoch, replay
from hpcsplit.schedule.actions import Train
from hpcsplit.schedule.timetable import Order

MAP = (4, 6, 6)  # of a boundary: 144 values
CLASSES = 3
BATCH = 8
EXACT, PARALLEL = Train(0, "serial", 0), Train(0, "parallel", 0)
FREE = Machine(node=1, latency_s=0.0, bandwidth=0.0)  # messages take no time
JOIN = CutCost(psi_s=0.25, lam_s=0.5, kappa_s=0.125)


def problem(
    times: Sequence[tuple[float, float]],
    *,
    method: TrainingMethod | None = None,
    microbatches: int = 1,
    join: CutCost = JOIN,
    update_s: float = 0.0,
    data_s: float = 0.0,
    packing_s: float = 0.0,
    weights: float = 0.0,
    order: Order = "1f1b",
) -> Problem:
    """A network of blocks that take so long forward and backward; a micro-batch takes its share.  In exact epochs so
    much of a backward pass is weight gradients that wait."""
    blocks = tuple(BlockTime(f, b) for f, b in times)
    pieces = tuple(BlockTime(f / microbatches, b / microbatches) for f, b in times)
    late = tuple(replace(piece, weights_s=weights * piece.backward_s) for piece in pieces) if weights else ()
    cut_costs, params = (CutCost(),) + (join,) * (len(times) - 1), (1,) * len(times)
    return Problem(
        method=method or Penalty(),
        exact=Backprop(microbatches, order, deferred=weights > 0),
        shapes=[(3, 6, 6), *([MAP] * (len(times) - 1)), (CLASSES,)],
        profile=Profile(blocks, pieces, microbatches, cut_costs, params, update_s, data_s, packing_s, late=late),
        batch_size=BATCH,
    )


def exact_steps(p: Problem, cuts: Sequence[int], machine: Machine = FREE, steps: int = 3) -> Replayed:
    return replay(p, cuts, machine, EXACT, steps)


def parallel_steps(p: Problem, cuts: Sequence[int], machine: Machine = FREE, steps: int = 3) -> Replayed:
    return replay(p, cuts, machine, PARALLEL, steps)


def step_s(p: Problem, cuts: Sequence[int], machine: Machine = FREE) -> float:
    """A parallel step in the middle of a long epoch."""
    return epoch(p, cuts, machine, PARALLEL).step_s
