"""What rank 0 finds out before a run and tells the others: are the data there, where to cut, does it fit, how fast is
one core and how fast should the run be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from hpcsplit.checkpoint.origin import Origin
from hpcsplit.config.checks import check_method_stages
from hpcsplit.data.catalog import Spec
from hpcsplit.data.dataset import fingerprint
from hpcsplit.engine.resume import newest
from hpcsplit.errors import ConfigError
from hpcsplit.methods.backprop import Backprop
from hpcsplit.plan.begin import Asked, epochs_of, origin_of
from hpcsplit.plan.feasibility import check_feasible
from hpcsplit.plan.forecast import forecast, gamma_of
from hpcsplit.plan.measure import FEW_ROUNDS, ROUNDS, one_rank_alone, profile
from hpcsplit.plan.profile import Profile
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.stages import footprints, plan_stages
from hpcsplit.plan.trial import check_network
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Phase
from hpcsplit.stage.cuts import balanced_cuts, charged, ranges


@dataclass(frozen=True)
class Prepared:
    """What rank 0 found out before the run and told the others.

    Attributes:
        code: fingerprints of the user's own network.
        rehearse: rank 0 has written a forecast, which wants the times of stages that compute at once.
        deferred: weight gradients may wait; false where an earlier start has found that this takes longer.
        plans: of the stages, as plain values.
        spec: of the data, which only the first and the last rank look at.
        adapted: values that the network needs in place of the configuration's, {"section.key": value}.
        notes: what there is to say of the network, of what it begins with, and of other epochs than before.
        origin: the checkpoint of another run that this one begins with, or has begun with.
        phases: the kinds of all epochs, where they do not follow from the configuration.
        earlier: fingerprints of the run before it got other epochs.
    """

    cuts: tuple[int, ...]
    costs: tuple[float, ...]
    data_fingerprint: str
    baseline_samples_per_s: float | None
    rehearse: bool = False
    deferred: bool = True
    code: Mapping[str, str] = field(default_factory=dict)
    plans: tuple[dict[str, Any], ...] = ()
    adapted: Mapping[str, Any] = field(default_factory=dict)
    spec: Spec | None = None
    notes: tuple[str, ...] = ()
    origin: Origin | None = None
    phases: tuple[Phase, ...] = ()
    earlier: Mapping[str, str] = field(default_factory=dict)


def choose_cuts(
    setting: Setting, stages: int, measured: Profile | None = None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The cuts of this configuration for `stages` stages, and the cost of every block that they balance; measured ones
    have what a cut costs in the blocks beside it.

    Args:
        measured: the seconds that `split.cuts = "time"` balances; without them FLOPs stand in.
    """
    asked, blocks = setting.config.split.cuts, setting.blocks
    cut_costs: tuple[float, ...] = ()
    if asked == "time" and measured:
        costs = tuple(block.seconds for block in measured.parallel)
        cut_costs = tuple(join.seconds / 2 for join in measured.cut_costs)
    else:
        costs = tuple(float(block.params if asked == "params" else block.flops) for block in blocks)
    cuts = balanced_cuts(costs, stages, cut_costs) if isinstance(asked, str) else asked
    if len(cuts) + 1 != stages:
        raise ConfigError(f"split.cuts = {list(cuts)} makes {len(cuts) + 1} stages, not {stages}")
    ranges(cuts, len(blocks))
    return cuts, charged(costs, cuts, cut_costs)


def prepare(
    setting: Setting,
    run_dir: RunDir,
    stages: int,
    device: torch.device,
    here: int = 0,
    sharing: int = 0,
    asked: Asked | None = None,
) -> Prepared:
    """Everything that rank 0 finds out alone.

    Cuts chosen at the first start of a run directory stay, so that its checkpoints fit.

    Args:
        here: how many of the stages are on this node; 0: all.
        sharing: how many ranks share a GPU; 0: the GPUs that are seen here serve all ranks of the node.
        asked: what the command line asks for, if anything.
    """
    config = setting.config
    check_method_stages(setting.declared, stages)
    images = fingerprint(setting.data)
    if config.data.batch_size > setting.epoch_samples:
        raise ConfigError(
            f"data.batch_size = {config.data.batch_size} is more than the {setting.epoch_samples} training samples; "
            "lower it"
        )
    checked = check_network(setting, device)
    setting, config = checked.setting, checked.setting.config
    asked = asked or Asked()
    run_dir.check_trust()  # before anything in it is read
    origin, said = origin_of(setting, run_dir, asked)
    epochs = epochs_of(setting, run_dir, extend=asked.extend)
    setting = setting.following(epochs.phases)
    prints = config.fingerprint()
    key = json.dumps([prints["model"], prints["data"], config.split.cuts, stages])
    known = run_dir.load_split(key)
    if known and len(known["costs"]) != len(setting.blocks):
        known = None
    by_time, alone = config.split.cuts == "time", config.run.runner == "lockstep"
    times_itself = config.run.baseline and not alone and not asked.dry_run
    expected = run_dir.load_forecast() or {}
    whole = expected.get("key") == key and (stages == 1 or "profile_together" in expected)
    measured = None
    if (by_time and not known) or (times_itself and not whole):
        choose_cuts(setting, stages)  # what cannot be cut is refused before anything is timed
        measured = profile(setting, device, cuts=stages > 1, repeats=ROUNDS if by_time else FEW_ROUNDS)
    cuts, costs = (tuple(known["cuts"]), tuple(known["costs"])) if known else choose_cuts(setting, stages, measured)
    plans = plan_stages(setting, cuts, costs)
    check_feasible(setting, plans, footprints(setting, plans), run_dir, here or stages, sharing)
    if asked.dry_run:
        run_dir.check(config)
    else:
        run_dir.create(config)
    identity = replace(setting.identity(cuts, images, setting.code), earlier=epochs.earlier)
    newest(run_dir.checkpoints, identity)  # refused before anything is touched
    if not asked.dry_run:
        run_dir.save_split(key, {"cuts": list(cuts), "costs": list(costs)})
    baseline = one_rank_alone(setting, device) if times_itself else None
    if measured and times_itself:
        if baseline:  # with what is around the blocks
            measured = measured.slowed((), (setting.timed_batch / baseline / measured.serial_s,))
        edges = [plan.edge_bytes for plan in plans[:-1]]
        run_dir.save_forecast(
            {
                "key": key,
                "batch_size": setting.timed_batch,
                "forecast": forecast(measured, cuts, gamma_of(setting.phases), edges, setting.exact).as_dict(),
                "one_rank_samples_per_s": baseline,
                "cuts": list(cuts),
                "edge_bytes": edges,
                "profile": asdict(measured),
            }
        )
    return Prepared(
        cuts,
        costs,
        images,
        baseline,
        measured is not None and times_itself,
        expected.get("deferred", True) if whole else True,
        setting.code,
        tuple(asdict(plan) for plan in plans),
        checked.adapted,
        setting.spec,
        (*_data_notes(setting), *checked.notes, *said, *epochs.notes),
        origin,
        epochs.phases,
        epochs.earlier,
    )


def _data_notes(setting: Setting) -> tuple[str, ...]:
    """What there is to say of the data."""
    held_out, opened = setting.config.data.validation, setting.opened
    if not opened:
        return ()
    both = () if opened.test else (f"note: the {held_out} samples held out are the test set, too",)
    return (*opened.notes, *both)


def expect_together(
    run_dir: RunDir, seconds: Sequence[float | None], exact_s: Mapping[bool, float], exact: Backprop
) -> None:
    """Make the forecast one of stages that compute at once; "profile" stays that of a rank alone.

    Args:
        seconds: of each stage's blocks while the others computed theirs (measure.rehearse).
        exact_s: of an exact step without the optimizer's (measure.rehearse_exact), with weight gradients that wait, and
            with none that do.
        exact: the exact steps that the run will have.
    """
    values = run_dir.load_forecast()
    assert values is not None, "prepare has written it"
    alone, cuts = Profile.from_dict(values["profile"]), values["cuts"]
    if not exact.deferred:
        alone = replace(alone, late=())
    together, known = alone, [now for now in seconds if now is not None]
    if len(known) == len(seconds):
        factors = [now / before for now, before in zip(known, alone.blocks_s(cuts), strict=True)]
        together = alone.slowed(cuts, factors)
    shared = {"gamma": values["forecast"]["gamma"], "edge_bytes": values["edge_bytes"], "exact": exact}
    update_s = max(update for _, update in together.exact_stages(cuts))
    parts_s = forecast(together, cuts, **shared).exact_s - update_s
    together = together.slowed((), (exact_s[exact.deferred] / parts_s,))
    result = forecast(together, cuts, **shared)
    result = replace(result, t_f=alone.forward_s, t_b=alone.backward_s, t_d=alone.data_s)
    found = {"forecast": result.as_dict(), "profile_together": asdict(together), "deferred": exact.deferred}
    found |= {"profile": asdict(alone)}
    found |= {"exact_s": {"deferred" if late else "whole": seconds for late, seconds in exact_s.items()}}
    run_dir.save_forecast(values | found)
