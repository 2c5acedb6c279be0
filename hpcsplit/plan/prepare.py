"""What rank 0 finds out before a run and tells the others: are the data there, where to cut, does it fit, how fast is
one core and how fast should the run be."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from hpcsplit.assemble import (
    Prepared,
    batch_size,
    build_method,
    build_network,
    code_prints,
    epoch_samples,
    load_data,
    make_identity,
    make_phases,
    make_source,
    make_stage,
    precision_of,
)
from hpcsplit.config import Config
from hpcsplit.config.checks import check_method_stages
from hpcsplit.config.declared import declared_methods
from hpcsplit.data.dataset import Dataset, fingerprint
from hpcsplit.engine.job import FORWARD_ROWS
from hpcsplit.engine.resume import newest
from hpcsplit.errors import ConfigError
from hpcsplit.host.device import wait_for
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import Batch
from hpcsplit.plan.blocks import BlockCost, block_costs
from hpcsplit.plan.feasibility import check_fits, footprints
from hpcsplit.plan.forecast import forecast, gamma_of
from hpcsplit.plan.measure import FEW_ROUNDS, ROUNDS, profile
from hpcsplit.plan.memory import kept_bytes
from hpcsplit.plan.profile import Profile
from hpcsplit.plan.stages import StagePlan, plan_stages
from hpcsplit.plan.trial import check_network
from hpcsplit.run.folder import RunDir
from hpcsplit.stage.cuts import balanced_cuts, charged, ranges

WARM_UP_STEPS, BASELINE_STEPS = 3, 5  # the first ones ask for memory that later ones have


def choose_cuts(
    config: Config, blocks: Sequence[BlockCost], stages: int, measured: Profile | None = None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The cuts of this configuration for `stages` stages, and the cost of every block that they balance; measured ones
    have what a cut costs in the blocks beside it.

    Args:
        measured: the seconds that `split.cuts = "time"` balances; without them FLOPs stand in.
    """
    wish = config.split.cuts
    joins: tuple[float, ...] = ()
    if wish == "params":
        costs = tuple(float(block.params) for block in blocks)
    elif wish == "time" and measured:
        costs = tuple(block.seconds for block in measured.parallel)
        joins = tuple(join.seconds / 2 for join in measured.joins)
    else:
        costs = tuple(float(block.flops) for block in blocks)
    cuts = balanced_cuts(costs, stages, joins) if isinstance(wish, str) else wish
    if len(cuts) + 1 != stages:
        raise ConfigError(f"split.cuts = {list(cuts)} makes {len(cuts) + 1} stages, not {stages}")
    ranges(cuts, len(blocks))
    return cuts, charged(costs, cuts, joins)


def prepare(
    config: Config, run_dir: RunDir, stages: int, device: torch.device, here: int = 0, sharing: int = 0
) -> Prepared:
    """Everything that rank 0 finds out alone: the data are there, where to cut, how fast one core is and how fast the
    run should be.

    Cuts chosen at the first start of a run directory stay, so that its checkpoints fit.

    Args:
        here: how many of the stages are on this node; 0: all.
        sharing: how many ranks share a GPU; 0: the GPUs that are seen here serve all ranks of the node.
    """
    check_method_stages(declared_methods()[config.method.name], stages)
    net = build_network(config)
    data = load_data(config)
    if config.data.batch_size > epoch_samples(config):
        raise ConfigError(
            f"data.batch_size = {config.data.batch_size} is more than the {epoch_samples(config)} training samples; "
            "lower it"
        )
    checked = check_network(config, net, device)
    config = checked.config
    key = json.dumps([config.fingerprint()["model"], config.fingerprint()["data"], config.split.cuts, stages])
    known = run_dir.load_split(key)
    if known and len(known["costs"]) != len(net):
        known = None
    blocks, by_time = block_costs(net, data.input_shape), config.split.cuts == "time"
    measured = None
    expected = run_dir.load_forecast() or {}
    whole = expected.get("key") == key and (stages == 1 or "profile_together" in expected)
    if (by_time and not known) or (_times_itself(config) and not whole):
        choose_cuts(config, blocks, stages)  # what cannot be cut is refused before anything is timed
        measured = profile(config, net, device, joins=stages > 1, repeats=ROUNDS if by_time else FEW_ROUNDS)
    cuts, costs = (
        (tuple(known["cuts"]), tuple(known["costs"])) if known else choose_cuts(config, blocks, stages, measured)
    )
    plans = stage_plans(config, blocks, cuts, costs)
    check_fits(
        config, plans, footprints(config, kept_bytes(net, data.input_shape), plans), run_dir, here or stages, sharing
    )
    run_dir.create(config)
    images = fingerprint(data)
    code = code_prints(config)
    newest(run_dir.checkpoints, make_identity(config, net, cuts, images, code))  # refused before anything is touched
    run_dir.save_split(key, {"cuts": list(cuts), "costs": list(costs)})
    baseline = baseline_of(config, net, data, device)
    rehearse = measured is not None and _times_itself(config)
    if measured and rehearse:
        size = batch_size(config, most=FORWARD_ROWS)
        if baseline:  # with what is around the blocks
            measured = measured.slowed((), (size / baseline / measured.serial_s,))
        edges = [plan.edge_bytes for plan in plans[:-1]]
        run_dir.save_forecast(
            {
                "key": key,
                "batch_size": size,
                "forecast": forecast(measured, cuts, gamma_of(make_phases(config)), edges).as_dict(),
                "one_rank_samples_per_s": baseline,
                "cuts": list(cuts),
                "edge_bytes": edges,
                "profile": measured.as_dict(),
            }
        )
    return Prepared(
        cuts,
        costs,
        images,
        baseline,
        rehearse,
        code,
        tuple(plan.as_dict() for plan in plans),
        checked.adapted,
        checked.notes,
    )


def expect_together(run_dir: RunDir, seconds: Sequence[float | None], exact_s: float) -> None:
    """Make the forecast one of stages that compute at once; "profile" stays that of a rank alone.

    Args:
        seconds: of each stage's blocks while the others computed theirs (measure.rehearse).
        exact_s: of an exact step without the optimizer's (measure.rehearse_exact).
    """
    values = run_dir.load_forecast()
    assert values is not None, "prepare has written it"
    alone, cuts = Profile.from_dict(values["profile"]), values["cuts"]
    known = [now for now in seconds if now is not None]
    together = alone
    if len(known) == len(seconds):
        factors = [now / before for now, before in zip(known, alone.blocks_s(cuts), strict=True)]
        together = alone.slowed(cuts, factors)
    expect = partial(forecast, cuts=cuts, gamma=values["forecast"]["gamma"], edge_bytes=values["edge_bytes"])
    update_s = max(update for *_, update in together.exact_stages(cuts))
    together = together.slowed((), (exact_s / (expect(together).exact_s - update_s),))
    found = expect(together)
    found = replace(found, t_f=alone.forward_s, t_b=alone.backward_s, t_d=alone.data_s)
    run_dir.save_forecast(values | {"forecast": found.as_dict(), "profile_together": together.as_dict()})


def stage_plans(
    config: Config, blocks: Sequence[BlockCost], cuts: Sequence[int], costs: Sequence[float]
) -> list[StagePlan]:
    """The plan of every stage of this configuration.

    Raises ConfigError where the method cannot keep variables at a boundary.
    """
    for k, cut in enumerate(cuts, start=1):
        shape = blocks[cut].in_shape
        if config.method.options.get("downsample") == 2 and len(shape) != 3:
            raise ConfigError(
                f"method.downsample = 2 halves height and width, but stage {k} receives vectors {tuple(shape)}; "
                "use downsample = 1 or other split.cuts"
            )
    return plan_stages(
        blocks,
        cuts,
        costs,
        build_method(config),
        samples=epoch_samples(config),
        batch_size=batch_size(config),
        dtype=getattr(torch, config.store.dtype),
        activation=precision_of(config),
    )


def _times_itself(config: Config) -> bool:
    """Whether this run says how fast one rank is, and how fast it should be."""
    return config.run.baseline and config.run.runner != "lockstep"


def baseline_of(config: Config, net: nn.Sequential, data: Dataset, device: torch.device) -> float | None:
    """Samples/s of exact steps of the whole network on this rank alone: the median of a few after a warm-up.

    None when it is not wanted, or the whole network does not fit on one device.
    """
    if not _times_itself(config):
        return None
    try:
        return _one_rank_alone(config, net, data, device)
    except torch.OutOfMemoryError:
        return None


def _one_rank_alone(config: Config, net: nn.Sequential, data: Dataset, device: torch.device) -> float:
    whole = make_stage(config, net, 0, 1, (), device)
    source = make_source(config, data.train, data, device)
    step = Backprop(1)
    size, times = batch_size(config, most=FORWARD_ROWS), []
    ids = np.arange(size)
    for _ in range(WARM_UP_STEPS + BASELINE_STEPS):
        started = time.perf_counter()
        view = {"augment": config.data.augment}
        batch = Batch(ids, size, source.images(ids, **view), whole.task.targets(source, ids, **view))
        for _verb in step.step(whole, {}, batch):
            raise AssertionError("one stage has nobody to talk to")
        wait_for(device)
        times.append(time.perf_counter() - started)
    return size / statistics.median(times[WARM_UP_STEPS:])
