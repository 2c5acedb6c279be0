"""The `simulate` command: the schedule replayed by the real stage programs on a machine that need not be there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from hpcsplit.commands.timeline import draw
from hpcsplit.config import Config
from hpcsplit.errors import ConfigError, DataError
from hpcsplit.methods.contract import TrainingMethod, flights
from hpcsplit.plan.measure import profile
from hpcsplit.plan.profile import Profile
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.simulate.dry import Problem
from hpcsplit.plan.simulate.machine import Machine, Span
from hpcsplit.plan.simulate.study import Row, replay, row
from hpcsplit.plan.trial import check_network
from hpcsplit.schedule.actions import Action, Refresh, Stop, Train, Trained
from hpcsplit.schedule.hybrid import SavePolicy, actions
from hpcsplit.stage.cuts import balanced_cuts, quick_cuts
from hpcsplit.stage.stage import Place

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BLOCKS_A_RANK = 4  # of a network that is made deeper because there are more ranks than blocks
EXACT_CUTS = 200  # blocks up to which the best cuts are looked for
MOST_STEPS = 20_000  # of all ranks together that one row may take
DRAWN_RANKS, DRAWN_STEPS = 16, 3


def simulate_command(
    config: Config,
    ranks: tuple[int, ...],
    machine: Machine,
    *,
    source: Path | None = None,
    deeper: int = 0,
    out: Path | None = None,
    as_json: bool = False,
) -> int:
    """Print a row for each number of ranks, and draw a few steps and the scaling curves to `out`; the exit code.

    Args:
        source: forecast.json of a run, whose profile is taken instead of timing this device.
        deeper: every inner block so many times; 0: once, and more where there are more ranks than blocks.
    """
    setting = Setting(config)
    if setting.declared.full_batch or setting.declared.stages:
        raise ConfigError(
            f'method.name = "{config.method.name}" works layer by layer on all samples; only methods of mini-batches '
            "and stages can be replayed, such as penalty"
        )
    problem = problem_of(setting, source)
    schedule, steps, blocks = _schedule(setting, problem.method), len(setting.batch_sizes), len(problem.shapes) - 1
    rows, notes = [], []
    for count in ranks or RANKS:
        times = deeper or (1 if count <= blocks else -(-BLOCKS_A_RANK * count // (blocks - 2)))
        here = problem.deeper(times) if times > 1 else problem
        lead = flights(here.method, 0, count)
        if count * lead * here.method.microbatches > MOST_STEPS:
            notes.append(f"{count} ranks: left out, with {lead:g} mini-batches in flight it would take too long")
            continue
        rows.append(row(here, _cuts(config, here, count), machine, schedule, steps, times))
    if as_json:
        found = {"machine": vars(machine), "rows": [asdict(each) for each in rows], "notes": notes}
        print(json.dumps(found, indent=1))
    else:
        print("\n".join([*_table(config, machine, rows, problem), *notes]))
    if out:
        drawn = problem.deeper(deeper) if deeper else problem
        most = min(DRAWN_RANKS, len(drawn.profile.blocks))
        shown = max((each.ranks for each in rows if each.ranks <= most), default=most)
        draw(rows, _timelines(drawn, _cuts(config, drawn, shown), machine), out, _title(config, machine))
        if not as_json:
            print(f"picture: {out}")
    return 0


def problem_of(setting: Setting, source: Path | None = None) -> Problem:
    """What is to be simulated, with the profile of a run's forecast.json, or one that is taken now."""
    setting = check_network(setting, setting.device()).setting
    measured = _load_profile(source) if source else profile(setting, setting.device())
    method = setting.method.at(0)
    blocks, pieces, own = len(setting.blocks), setting.config.schedule.microbatches, method.microbatches
    if (len(measured.blocks), measured.microbatches, measured.own) != (blocks, pieces, own):
        raise DataError(
            f"{source} has the times of {len(measured.blocks)} blocks, with {measured.microbatches} micro-batches in "
            f"exact and {measured.own} in parallel steps, this network has {blocks} blocks, with {pieces} and {own}; "
            "take the run's own configuration, or leave --profile out"
        )
    return Problem(
        method=method,
        exact=setting.exact,
        shapes=setting.shapes,
        profile=measured if setting.exact.deferred else replace(measured, late=()),
        batch_size=setting.timed_batch,
        dtype=setting.precision,
        aux_dtype=setting.store_dtype,
    )


def _load_profile(path: Path) -> Profile:
    """The profile in a run's forecast.json."""
    try:
        return Profile.from_dict(json.loads(path.read_text(encoding="utf-8"))["profile"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} has no profile of a run ({type(error).__name__}); name its forecast.json") from None


def _schedule(setting: Setting, method: TrainingMethod) -> list[Action]:
    """Everything that the hybrid schedule does, checkpoints apart."""
    rows = bool(method.variables(Place(False, True, (), 0)))
    course = actions(setting.phases, SavePolicy(0, 0.0, setting.aux_policy), no_aux=not rows, restarts=method.restarts)
    done: list[Action] = []
    action = next(course)
    while not isinstance(action, Stop):
        done.append(action)
        action = course.send(Trained() if isinstance(action, Train) else None)
    return done


def _cuts(config: Config, problem: Problem, ranks: int) -> tuple[int, ...]:
    """Where the network is cut: as `plan` does, or nearly so where there are many blocks."""
    if not isinstance(config.split.cuts, str) and len(config.split.cuts) + 1 == ranks:
        return config.split.cuts
    costs = [block.seconds for block in problem.profile.parallel]
    cut_costs = [join.seconds / 2 for join in problem.profile.cut_costs]
    return (balanced_cuts if len(costs) <= EXACT_CUTS else quick_cuts)(costs, ranks, cut_costs)


def _timelines(problem: Problem, cuts: Sequence[int], machine: Machine) -> dict[str, list[Span]]:
    """What the ranks do in a few steps of each kind."""
    kinds: dict[str, Train | Refresh] = {
        f"{DRAWN_STEPS} parallel steps": Train(0, "parallel", 0, goes_on=True),
        f"{DRAWN_STEPS} exact steps, {problem.microbatches} micro-batches": Train(0, "serial", 0),
        f"refresh of {DRAWN_STEPS} mini-batches": Refresh(0),
    }
    return {name: replay(problem, cuts, machine, action, DRAWN_STEPS).spans for name, action in kinds.items()}


def _title(config: Config, machine: Machine) -> str:
    disk = f", disk {machine.disk / 1e9:g} GB/s a node" if machine.disk else ""
    slow = f", one rank {machine.straggler:g} x slower" if machine.straggler != 1 else ""
    return (
        f"{config.model.name}, {config.method.name}, nodes of {machine.node}, links {machine.latency_s * 1e6:g} us and "
        f"{machine.bandwidth / 1e9:g} GB/s, inside a node {machine.inside_latency_s * 1e6:g} us and "
        f"{machine.inside_bandwidth / 1e9:g} GB/s{disk}{slow}"
    )


def _table(config: Config, machine: Machine, rows: Sequence[Row], problem: Problem) -> list[str]:
    schedule = config.schedule
    lines = [
        f"simulated: {_title(config, machine)}",
        f"schedule {schedule.ratio} over {schedule.epochs} epochs, refreshes charged; mini-batches of "
        f"{problem.batch_size}, {problem.microbatches} micro-batches; speed-ups over one rank's exact steps",
        f"{'':<25} {'parallel step':^41} {'exact step':^31} {'whole':>7}",
        f"{'ranks':>5} {'nodes':>5} {'blocks':>6} {'deeper':>6} {'s':>10} {'x one':>7} {'of K':>6} {'binds':>13}  "
        f"{'s':>10} {'x one':>7} {'binds':>13} {'x one':>7}",
    ]
    for each in rows:
        deeper = "-" if each.deeper == 1 else f"x {each.deeper}"
        lines.append(
            f"{each.ranks:>5} {each.nodes:>5} {each.blocks:>6} {deeper:>6} {each.parallel.step_s:>10.5f} "
            f"{each.parallel_speed_up:>7.2f} {each.parallel_speed_up / each.ranks:>6.1%} {each.parallel_binds:>13}  "
            f"{each.exact.step_s:>10.5f} {each.exact_speed_up:>7.2f} {each.exact_binds:>13} "
            f"{each.hybrid_speed_up:>7.2f}"
        )
    if any(each.deeper > 1 for each in rows):
        lines.append(
            f"deeper: more ranks than the network's {len(problem.shapes) - 1} blocks, so every block but the first and "
            "the last stands so many times in a row, also in the one rank that the speed-up is over"
        )
    return lines
