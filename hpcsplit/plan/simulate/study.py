"""What a simulation is asked: how long a step takes, what it waits for and sends, how a whole schedule scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.forward import refresh
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import Tally, TrainingMethod, flights, visits
from hpcsplit.plan.blocks import BlockTime
from hpcsplit.plan.profile import Profile
from hpcsplit.plan.simulate.dry import Problem, Unknown, make_jobs
from hpcsplit.plan.simulate.machine import Clock, Machine, Span
from hpcsplit.plan.simulate.runner import Simulation
from hpcsplit.schedule.actions import Action, Refresh, Train
from hpcsplit.stage.stage import Shape
from hpcsplit.wire.port import Traffic

FEW, MORE = 4, 8  # steps of the two epochs that an epoch of many steps is extrapolated from
FLUSHED = 1, 2  # the same, where the pipeline runs empty behind each step
BINDS = {  # what a rank's time goes into; the last one is balance, or the pipeline's bubble
    "computation": ("forward", "backward", "weights", "update", "data"),
    "variables": ("variables", "messages"),
    "link": ("link",),
    "store": ("store",),
    "other ranks": ("wait",),
}


@dataclass(frozen=True)
class Replayed:
    """How an action went.

    Attributes:
        length_s: until the last rank has done it.
        shares: of the ranks' time, by what it went into.
    """

    length_s: float
    shares: dict[str, float]
    traffic: list[Traffic]
    spans: list[Span]


@dataclass(frozen=True)
class Epoch:
    """An epoch of many steps: `first_s` for the first `steps` of them and `step_s` for each further one."""

    steps: int
    first_s: float
    step_s: float
    shares: dict[str, float]

    def length_s(self, steps: int) -> float:
        return self.first_s + (steps - self.steps) * self.step_s

    @property
    def binds(self) -> str:
        """What most of the ranks' time goes into."""
        return max(BINDS, key=lambda name: sum(self.shares.get(kind, 0.0) for kind in BINDS[name]))


@dataclass(frozen=True)
class Row:
    """A number of ranks; speed-ups are over one rank's exact steps of the same network."""

    ranks: int
    nodes: int
    blocks: int
    deeper: int
    one_rank_s: float
    parallel: Epoch
    exact: Epoch
    refresh: Epoch | None
    hybrid_speed_up: float
    parallel_speed_up: float
    exact_speed_up: float
    parallel_binds: str
    exact_binds: str


def replay(problem: Problem, cuts: Sequence[int], machine: Machine, action: Refresh | Train, steps: int) -> Replayed:
    """Walk all ranks through this action, an epoch of so many steps."""
    ranks, phase = len(cuts) + 1, action.phase if isinstance(action, Train) else "parallel"
    clocks = [Clock(rank, machine.straggler if rank == ranks // 2 else 1.0) for rank in range(ranks)]
    jobs = make_jobs(problem, cuts, clocks, machine, phase, steps)
    simulation = Simulation(
        [
            refresh(job, action, None) if isinstance(action, Refresh) else train_epoch(job, action, Tally())
            for job in jobs
        ],
        clocks,
        machine,
        bytes_of_one=problem.samples_of_one(phase),
        packing_s=problem.profile.packing_s,
        idle=[job.stage.deferred.one for job in jobs],
    )
    with Unknown() if problem.device.type == "meta" else nullcontext():
        length = simulation.run()
    for clock in clocks:
        clock.wait(length, "wait")
    whole, kinds = max(ranks * length, 1e-300), sorted({kind for clock in clocks for kind in clock.spent})
    shares = {kind: sum(clock.spent[kind] for clock in clocks) / whole for kind in kinds}
    return Replayed(length, shares, simulation.traffic, [span for clock in clocks for span in clock.spans])


def epoch(problem: Problem, cuts: Sequence[int], machine: Machine, action: Refresh | Train) -> Epoch:
    """An epoch of this action, from two short ones: behind its first steps each takes as long as the one before."""
    flushed = isinstance(action, Train) and action.phase == "serial"
    lead = 0 if flushed else math.ceil(flights(problem.method, 0, len(cuts) + 1))
    few, more = (lead + steps for steps in (FLUSHED if flushed else (FEW, MORE)))
    begun, done = (replay(problem, cuts, machine, action, steps) for steps in (few, more))
    return Epoch(more, done.length_s, (done.length_s - begun.length_s) / (more - few), done.shares)


def row(
    problem: Problem, cuts: Sequence[int], machine: Machine, schedule: Sequence[Action], steps: int, deeper: int = 1
) -> Row:
    """What a number of ranks reaches with a schedule whose epochs have so many steps.

    Args:
        schedule: everything that the hybrid schedule wants done.
        deeper: how many times as deep the network is as the one that was asked for.
    """
    ranks, one = len(cuts) + 1, problem.profile.serial_s
    parallel = epoch(problem, cuts, machine, Train(0, "parallel", 0, goes_on=True))
    exact = epoch(problem, cuts, machine, Train(0, "serial", 0))
    refreshes = sum(isinstance(action, Refresh) for action in schedule)
    fresh = epoch(problem, cuts, machine, Refresh(0)) if refreshes else None
    kinds = [action.phase for action in schedule if isinstance(action, Train)]
    whole = kinds.count("serial") * exact.length_s(steps) + kinds.count("parallel") * parallel.length_s(steps)
    whole += refreshes * fresh.length_s(steps) if fresh else 0.0
    return Row(
        ranks=ranks,
        nodes=-(-ranks // machine.node),
        blocks=len(problem.profile.blocks),
        deeper=deeper,
        one_rank_s=one,
        parallel=parallel,
        exact=exact,
        refresh=fresh,
        hybrid_speed_up=len(kinds) * steps * one / whole,
        parallel_speed_up=one / parallel.step_s,
        exact_speed_up=one / exact.step_s,
        parallel_binds=parallel.binds,
        exact_binds=exact.binds,
    )


def epoch_bytes(
    method: TrainingMethod,
    shapes: Sequence[Shape],
    cuts: Sequence[int],
    batch_sizes: Sequence[int],
    *,
    dtype: torch.dtype,
    aux_dtype: torch.dtype,
) -> list[tuple[int, int]]:
    """(to the stage before, to the next one) in bytes for each stage, in a parallel epoch of such mini-batches.

    An epoch of the fewest samples that make a mini-batch is replayed where nothing takes time, and counts for each
    sample of the whole one: a message has a row for each, and all are visited alike.  Shapes and types as in Problem.
    """
    blocks, few = len(shapes) - 1, method.microbatches
    free = (BlockTime(0.0, 0.0),) * blocks
    profile = Profile(free, free, 1, (), (0,) * blocks, 0.0, 0.0)
    problem = Problem(method, Backprop(), shapes, profile, few, dtype, aux_dtype)
    traffic = replay(problem, cuts, Machine(), Train(0, "parallel", 0), 1).traffic
    whole, replayed = _visits(method, batch_sizes), _visits(method, [few])
    return [(t.sent_bytes_prev * whole // replayed, t.sent_bytes_next * whole // replayed) for t in traffic]


def _visits(method: TrainingMethod, batch_sizes: Sequence[int]) -> int:
    """Samples that pass in an epoch of such mini-batches, each as often as it is visited."""
    return sum(map(len, visits(method, [np.arange(size) for size in batch_sizes])))
