"""What a simulation is asked: how long a step of each kind takes, what it waits for, how a whole schedule scales."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.methods.contract import Tally, flights
from hpcsplit.plan.simulate.dry import Problem, Unknown, make_jobs
from hpcsplit.plan.simulate.machine import WORK, Clock, Machine, Span
from hpcsplit.plan.simulate.runner import Simulation
from hpcsplit.schedule.actions import Action, Phase, Refresh, Train
from hpcsplit.wire.port import Traffic, Verb

FEW, MORE = 4, 8  # steps of the two epochs that an epoch of many steps is extrapolated from
FLUSHED = 1, 2  # the same, where the pipeline runs empty behind each step


@dataclass(frozen=True)
class Replayed:
    """How actions of one kind went.

    Attributes:
        length_s: until the last rank has done them.
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
        """What most of the ranks' time goes into: the network's own arithmetic, the variables, messages, waiting for a
        link, for the store, or for a rank that is not as far (balance, or the pipeline's bubble)."""
        groups = {
            "computation": sum(self.shares.get(kind, 0.0) for kind in WORK),
            "variables": self.shares.get("variables", 0.0) + self.shares.get("messages", 0.0),
            "link": self.shares.get("link", 0.0),
            "store": self.shares.get("store", 0.0),
            "other ranks": self.shares.get("wait", 0.0),
        }
        return max(groups, key=lambda name: groups[name])


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

    @property
    def parallel_speed_up(self) -> float:
        return self.one_rank_s / self.parallel.step_s

    @property
    def exact_speed_up(self) -> float:
        return self.one_rank_s / self.exact.step_s

    def as_dict(self) -> dict[str, Any]:
        gains = {"parallel_speed_up": self.parallel_speed_up, "exact_speed_up": self.exact_speed_up}
        binds = {"parallel_binds": self.parallel.binds, "exact_binds": self.exact.binds}
        return asdict(self) | gains | binds


def replay(
    problem: Problem, cuts: Sequence[int], machine: Machine, actions: Sequence[Action], phase: Phase, steps: int
) -> Replayed:
    """Walk all ranks through these actions, each an epoch of so many steps."""
    ranks = len(cuts) + 1
    clocks = [Clock(rank, machine.slowness(rank, ranks)) for rank in range(ranks)]
    jobs = make_jobs(problem, cuts, clocks, machine, phase, steps)
    simulation = Simulation(
        [_program(job, actions) for job in jobs],
        clocks,
        machine,
        bytes_of_one=problem.samples_of_one(phase),
        packing_s=problem.profile.packing_s,
        idle=[job.stage.deferred.one for job in jobs],
    )
    with Unknown() if problem.device.type == "meta" else nullcontext():
        length = simulation.run()
    spent: dict[str, float] = {}
    for clock in clocks:
        clock.wait(length, "wait")
        for kind, seconds in clock.spent.items():
            spent[kind] = spent.get(kind, 0.0) + seconds
    whole = max(ranks * length, 1e-300)
    shares = {kind: seconds / whole for kind, seconds in sorted(spent.items())}
    return Replayed(length, shares, simulation.traffic, [span for clock in clocks for span in clock.spans])


def _program(job: Job, actions: Sequence[Action]) -> Generator[Verb, Any, None]:
    for action in actions:
        if isinstance(action, Refresh):
            yield from refresh(job, action, None)
        elif isinstance(action, Train):
            yield from train_epoch(job, action, Tally())


def epoch(problem: Problem, cuts: Sequence[int], machine: Machine, action: Action, phase: Phase) -> Epoch:
    """An epoch of this action, from two short ones: behind its first steps each takes as long as the one before."""
    lead = math.ceil(flights(problem.method, 0, len(cuts) + 1)) if phase == "parallel" else 0
    few, more = (lead + steps for steps in (FLUSHED if phase == "serial" else (FEW, MORE)))
    begun, done = (replay(problem, cuts, machine, [action], phase, steps) for steps in (few, more))
    return Epoch(more, done.length_s, (done.length_s - begun.length_s) / (more - few), done.shares)


def row(
    problem: Problem, cuts: Sequence[int], machine: Machine, schedule: Sequence[Action], steps: int, deeper: int = 1
) -> Row:
    """What a number of ranks reaches with a schedule whose epochs have so many steps.

    Args:
        schedule: everything that the hybrid schedule wants done.
        deeper: how many times as deep the network is as the one that was asked for.
    """
    ranks = len(cuts) + 1
    parallel = epoch(problem, cuts, machine, Train(0, "parallel", 0, goes_on=True), "parallel")
    exact = epoch(problem, cuts, machine, Train(0, "serial", 0), "serial")
    refreshes = sum(isinstance(action, Refresh) for action in schedule)
    fresh = epoch(problem, cuts, machine, Refresh(0), "parallel") if refreshes else None
    kinds = [action.phase for action in schedule if isinstance(action, Train)]
    serial_epochs, parallel_epochs = kinds.count("serial"), kinds.count("parallel")
    one = problem.profile.serial_s
    whole = serial_epochs * exact.length_s(steps) + parallel_epochs * parallel.length_s(steps)
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
    )
