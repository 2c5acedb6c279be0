"""The `plan` command: what a run will need and how fast it should be, printed or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpcsplit.commands.planned import summary, text
from hpcsplit.config import Config
from hpcsplit.config.checks import check_method_stages
from hpcsplit.errors import HpcsplitError
from hpcsplit.methods.contract import delay
from hpcsplit.plan.advice import advice
from hpcsplit.plan.feasibility import check_feasible
from hpcsplit.plan.forecast import forecast, gamma_of, hybrid
from hpcsplit.plan.measure import profile
from hpcsplit.plan.prepare import choose_cuts
from hpcsplit.plan.profile import Profile
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.simulate.study import epoch_bytes
from hpcsplit.plan.stages import auxiliary_gib, footprints, plan_stages
from hpcsplit.plan.trial import check_network
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.timetable import HALVED, WHOLE, course, in_flight, timetables, waiting
from hpcsplit.stage.cuts import balanced_cuts, stage_shares

MOST = 16  # ranks in the summary


@dataclass(frozen=True)
class Subject:
    """What all plans of a configuration have in common: the measured times of the blocks, where the run will be, how
    many ranks a node has (0: all), and what there is to say of the network."""

    setting: Setting
    run_dir: RunDir
    node: int = 0
    measured: Profile | None = None
    notes: tuple[str, ...] = ()


def plan_command(
    config: Config,
    ranks: tuple[int, ...],
    run_dir: RunDir,
    *,
    node: int = 0,
    measure: bool = False,
    as_json: bool = False,
    draw: bool = False,
) -> int:
    """Print the plan of each number of ranks that was asked for, or a line for each of 1 to 16; the exit code.

    A plan that does not fit is printed, too, so that one sees why, and then refused; in JSON its "refused" says so.

    Args:
        node: ranks of a node; 0: all.
        measure: time the parts of a step on this device.
        draw: the pipeline of an exact step, too.
    """
    fixed = config.split.stages or (0 if ranks else config.run.stages)
    wanted = (fixed,) if fixed else ranks
    subject = look_at(Setting(config), run_dir, wanted, node=node, measure=measure)
    most = min(MOST, len(subject.setting.blocks), subject.setting.declared.stages or MOST)
    planned = [plan(subject, count) for count in wanted or range(1, most + 1)]
    plans = [values for values, _ in planned]
    advised = advice(config, plans)
    if as_json:
        recommended = [dict(zip(("item", "choice", "reason"), each, strict=True)) for each in advised]
        print(json.dumps([p | {"recommended": recommended} for p in plans], indent=1))
        return 0
    lines = [text(each, draw) for each in plans] if wanted else ["\n".join(summary(plans))]
    notes = ["\n".join(subject.notes)] if subject.notes else []
    advised_lines = [f"  {item}: {choice}; {reason}" for item, choice, reason in advised]
    print("\n\n".join([*lines, *notes, "\n".join(["recommended", *advised_lines])]), flush=True)
    for _, refusal in planned if wanted else []:
        if refusal:
            raise refusal
    return 0


def look_at(
    setting: Setting, run_dir: RunDir, wanted: Sequence[int] = (), *, node: int = 0, measure: bool = False
) -> Subject:
    """The blocks of a configuration; numbers of stages that it cannot have are refused before anything is timed."""
    checked = check_network(setting, setting.device())
    setting = checked.setting
    for count in wanted:
        check_method_stages(setting.declared, count)
        choose_cuts(setting, count)
    measured = profile(setting, setting.device()) if measure else None
    by_value, notes = ", ".join(block.name for block in setting.blocks if block.by_value), checked.notes
    if by_value:
        why = f"values decide what these blocks compute: {by_value}"
        notes += (f"note: {why}. Multiply-adds and memory are those of random images",)
    return Subject(setting, run_dir, node, measured, notes)


def plan(subject: Subject, count: int) -> tuple[dict[str, Any], HpcsplitError | None]:
    """The plan for `count` ranks as plain values, and why it cannot be run, if so."""
    setting, measured = subject.setting, subject.measured
    config, phases = setting.config, setting.phases
    cuts, costs = choose_cuts(setting, count, measured)
    stages = plan_stages(setting, cuts, costs)
    types = {"dtype": setting.precision, "aux_dtype": setting.store_dtype}
    sent = epoch_bytes(setting.method, setting.shapes, cuts, setting.batch_sizes, **types)
    needs, refusal = footprints(setting, stages), None
    try:
        check_feasible(setting, stages, needs, subject.run_dir, subject.node or count)
    except HpcsplitError as error:
        refusal = error
    largest, m = max(s.share for s in stages), config.schedule.microbatches
    halves = [cost / 2 for cost in costs for _ in range(2)]
    finer = max(stage_shares(halves, balanced_cuts(halves, count)))
    gamma, copied = gamma_of(phases), setting.aux_policy == "copy"
    order, most, late = setting.exact.order, setting.exact.waiting, setting.exact.defers(count)
    tables = timetables(order, count, m)
    equal = course(tables, HALVED if late else WHOLE, most)
    bound = 3 * count * m / equal.length
    edges = [stage.edge_bytes for stage in stages[:-1]]
    expected = measured and forecast(measured, cuts, gamma, edges, setting.exact)
    values = {
        "ranks": count,
        "cuts": list(cuts),
        "balance": {"time": "measured time" if measured else "FLOPs", "params": "parameters"}.get(
            str(config.split.cuts), "FLOPs"
        ),
        "blocks": len(setting.blocks),
        "phases": phases,
        "params": sum(s.params for s in stages),
        "flops": sum(s.flops for s in stages),
        "samples": setting.epoch_samples,
        "method": config.method.name,
        "dtype": config.store.dtype,
        "batch_size": setting.batch_size,
        "stages": [
            asdict(stage)
            | {"to_prev_bytes": to_prev, "to_next_bytes": to_next, "memory": need}
            | {"checkpoint_aux_bytes": stage.store_bytes if copied else 0}
            for stage, need, (to_prev, to_next) in zip(stages, needs, sent, strict=True)
        ],
        "delays": [delay(setting.method, k, count) for k in range(count)],
        "aux_float32_gib": auxiliary_gib(setting, cuts),
        "pipeline": {
            "order": order,
            "microbatches": m,
            "speed_up_bound": bound,
            "in_flight": [in_flight(order, k, count, m) for k in range(count)],
            "waiting": [waiting(k, works, most) if late else 0 for k, works in enumerate(tables)],
            "drawn": equal.drawn(),
        },
        "parallel_speed_up_bound": 1 / largest,
        "parallel_speed_up_bound_inside_blocks": 1 / finer,
        "hybrid_speed_up_bound": hybrid(gamma, 1 / largest, bound),
        "forecast": expected.as_dict() if expected else None,
        "notes": subject.notes,
        "refused": str(refusal or ""),
    }
    return values, refusal
