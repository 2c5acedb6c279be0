"""`train --dry-run`: a mini-batch goes through all stages; and how a run and its stages are called in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcsplit.assemble import Around, make_jobs
from hpcsplit.commands.failure import Failure
from hpcsplit.engine.job import FORWARD_ROWS
from hpcsplit.errors import DONE
from hpcsplit.host.device import peak_bytes
from hpcsplit.plan.measure import rehearse_exact
from hpcsplit.plan.prepare import Prepared
from hpcsplit.plan.setting import Setting
from hpcsplit.report.console import Console
from hpcsplit.run.folder import RunDir
from hpcsplit.wire.port import World


def title(setting: Setting, stages: int) -> str:
    """What a run trains, on what and how."""
    config = setting.config
    copies = f", {config.data.copies} copies of each" if config.data.copies > 1 else ""
    held_out = f", {config.data.validation} held out" if config.data.validation else ""
    return (
        f"hpcsplit: {config.model.name} on {config.data.name} "
        f"({setting.train_size} training{copies}{held_out}, {setting.test_size} test samples), "
        f"{config.method.name}{' (frozen control)' if config.method.frozen else ''}, "
        f"{stages} stage{'s' * (stages > 1)}"
    )


def stage_line(p: Mapping[str, Any]) -> str:
    """A stage of a plan (`Prepared.plans`)."""
    return (
        f"stage {p['stage']}: blocks {p['first_block']} to {p['last_block']} ({p['blocks']}), "
        f"{p['params']:,} parameters, {p['share']:.1%} of the cost, input {'x'.join(map(str, p['in_shape']))}"
    )


def dry_run(
    setting: Setting,
    run_dir: RunDir,
    prepared: Prepared,
    world: World,
    console: Console | None,
    places: Sequence[Mapping[str, Any]],
    failure: Failure,
) -> int:
    """One mini-batch of the run forward and backward through all stages, and what that has taken; nothing is left."""
    exact = setting.following(("serial",))  # has no store
    around = Around(between_blocks=world.progress, alarm=failure.fail if world.size > 1 else lambda error: None)
    failure.jobs += make_jobs(exact, prepared, run_dir, world.stages, world.device, around)
    seconds = world.run([rehearse_exact(job, 1) for job in failure.jobs])
    told = world.share([seconds, peak_bytes(world.device)])
    if console:
        each = [(s, peak, there) for (all_s, peak), there in zip(told, places, strict=True) for s in all_s]
        lines = [title(setting, world.count), *prepared.notes]
        lines += [
            f"{stage_line(p)}, {1000 * s:.1f} ms forward and backward, {peak / 1e6:.0f} MB of memory in its process, "
            f"on {there['host']}:{there['device']}"
            for p, (s, peak, there) in zip(prepared.plans, each, strict=True)
        ]
        size = min(setting.timed_batch, FORWARD_ROWS)
        lines.append(
            f"dry run: one mini-batch of {size} has gone through all stages; nothing has been trained or written"
        )
        console.quiet = False
        console.say("\n".join(lines))
    return DONE
