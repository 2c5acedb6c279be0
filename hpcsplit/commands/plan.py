"""The `plan` command: what a run will need and how fast it should be, printed or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from hpcsplit.assemble import (
    aux_policy,
    batch_size,
    batch_sizes,
    build_method,
    build_network,
    device_of,
    epoch_samples,
    make_phases,
    precision_of,
)
from hpcsplit.commands.planned import summary, text
from hpcsplit.config import Config
from hpcsplit.config.checks import check_method_stages
from hpcsplit.config.declared import declared_methods
from hpcsplit.data.catalog import lookup
from hpcsplit.errors import HpcsplitError
from hpcsplit.methods.contract import TrainingMethod
from hpcsplit.plan.advice import advice
from hpcsplit.plan.blocks import BlockCost, block_costs
from hpcsplit.plan.feasibility import check_fits, footprints
from hpcsplit.plan.forecast import forecast, gamma_of
from hpcsplit.plan.measure import profile
from hpcsplit.plan.memory import Footprint, kept_bytes
from hpcsplit.plan.prepare import choose_cuts, stage_plans
from hpcsplit.plan.profile import Profile
from hpcsplit.plan.simulate.traffic import epoch_bytes
from hpcsplit.plan.stages import StagePlan, auxiliary_gib, hybrid_speed_up
from hpcsplit.plan.trial import check_network
from hpcsplit.run.folder import RunDir
from hpcsplit.stage.cuts import balanced_cuts, stage_shares
from hpcsplit.stage.timetable import Order, in_flight

MOST = 16  # ranks in the summary


@dataclass(frozen=True)
class Subject:
    """What all plans of a configuration have in common: the blocks, what autograd keeps of each, their measured times,
    where the run will be, how many ranks a node has (0: all), and what there is to say of the network."""

    config: Config
    blocks: Sequence[BlockCost]
    kept: Sequence[int]
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
    subject = look_at(config, run_dir, wanted, node=node, measure=measure)
    most = min(MOST, len(subject.blocks), declared_methods()[config.method.name].stages or MOST)
    planned = [plan(subject, count) for count in wanted or range(1, most + 1)]
    plans = [values for values, _ in planned]
    advised = advice(config, plans)
    if as_json:
        advised_values = [{"item": item, "choice": choice, "reason": reason} for item, choice, reason in advised]
        print(json.dumps([p | {"recommended": advised_values} for p in plans], indent=1))
        return 0
    lines = [text(each, draw) for each in plans] if wanted else ["\n".join(summary(plans))]
    advised_lines = [f"  {item}: {choice}; {reason}" for item, choice, reason in advised]
    notes = ["\n".join(plans[0]["notes"])] if plans[0]["notes"] else []
    print("\n\n".join([*lines, *notes, "\n".join(["recommended", *advised_lines])]), flush=True)
    for _, refusal in planned if wanted else []:
        if refusal:
            raise refusal
    return 0


def look_at(
    config: Config, run_dir: RunDir, wanted: Sequence[int] = (), *, node: int = 0, measure: bool = False
) -> Subject:
    """The blocks of a configuration; numbers of stages that it cannot have are refused before anything is timed."""
    shape, device = lookup(config.data.name).input_shape(config.data.pool), device_of(config, 0)
    net = build_network(config, meta=":" not in config.model.name)
    checked = check_network(config, net, device)
    config, blocks = checked.config, block_costs(net, shape)
    for count in wanted:
        check_method_stages(declared_methods()[config.method.name], count)
        choose_cuts(config, blocks, count)
    measured = profile(config, net, device) if measure else None
    return Subject(config, blocks, kept_bytes(net, shape), run_dir, node, measured, checked.notes)


def plan(subject: Subject, count: int) -> tuple[dict[str, Any], HpcsplitError | None]:
    """The plan for `count` ranks as plain values, and why it cannot be run, if so."""
    config, measured = subject.config, subject.measured
    cuts, costs = choose_cuts(config, subject.blocks, count, measured)
    method, phases = build_method(config), make_phases(config)
    stages = stage_plans(config, subject.blocks, cuts, costs)
    sent, needs, refusal = _sent(subject, method, cuts), footprints(config, subject.kept, stages), None
    try:
        check_fits(config, stages, needs, subject.run_dir, subject.node or count)
    except HpcsplitError as error:
        refusal = error
    largest, m = max(s.share for s in stages), config.schedule.microbatches
    halves = [cost / 2 for cost in costs for _ in range(2)]
    finer = max(stage_shares(halves, balanced_cuts(halves, count)))
    order, bound = cast(Order, config.schedule.pipeline), count * m / (count + m - 1)
    edges = [stages[0].in_shape, *(stage.out_shape for stage in stages)]
    expected = measured and forecast(measured, cuts, gamma_of(phases), [stage.edge_bytes for stage in stages[:-1]])
    values = {
        "ranks": count,
        "cuts": list(cuts),
        "balance": {"time": "measured time" if measured else "FLOPs", "params": "parameters"}.get(
            str(config.split.cuts), "FLOPs"
        ),
        "blocks": len(subject.blocks),
        "phases": phases,
        "params": sum(s.params for s in stages),
        "flops": sum(s.flops for s in stages),
        "samples": epoch_samples(config),
        "method": config.method.name,
        "dtype": config.store.dtype,
        "batch_size": batch_size(config),
        "stages": [_stage(config, *each) for each in zip(stages, needs, sent, strict=True)],
        "delays": [method.delay(k, count) for k in range(count)],
        "aux_float32_gib": auxiliary_gib(edges, epoch_samples(config)),
        "pipeline": {
            "order": order,
            "microbatches": m,
            "speed_up_bound": bound,
            "in_flight": [in_flight(order, k, count, m) for k in range(count)],
        },
        "parallel_speed_up_bound": 1 / largest,
        "parallel_speed_up_bound_inside_blocks": 1 / finer,
        "hybrid_speed_up_bound": hybrid_speed_up(phases, largest, bound),
        "forecast": expected.as_dict() if expected else None,
        "notes": [*subject.notes, *_uncounted(subject.blocks)],
        "refused": str(refusal or ""),
    }
    return values, refusal


def _uncounted(blocks: Sequence[BlockCost]) -> list[str]:
    """What the numbers of a plan leave open."""
    names = ", ".join(block.name for block in blocks if block.by_value)
    note = (
        f"note: values decide what these blocks compute: {names}. Multiply-adds and memory are those of random images"
    )
    return [note] if names else []


def _sent(subject: Subject, method: TrainingMethod, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Bytes of an epoch of the method, to the stage before and to the next one, for each stage."""
    config, blocks = subject.config, subject.blocks
    return epoch_bytes(
        method,
        [blocks[0].in_shape, *(block.out_shape for block in blocks)],
        cuts,
        batch_sizes(config),
        dtype=precision_of(config),
        aux_dtype=getattr(torch, config.store.dtype),
    )


def _stage(config: Config, stage: StagePlan, need: Footprint, sent: tuple[int, int]) -> dict[str, Any]:
    return stage.as_dict() | {
        "to_prev_bytes": sent[0],
        "to_next_bytes": sent[1],
        "memory": need.as_dict(),
        "checkpoint_aux_bytes": stage.store_bytes if aux_policy(config) == "copy" else 0,
    }
