"""How a run begins, as rank 0 finds out: with what another run has learned (`train --continue-from`), or with another
number of epochs than it had before."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcsplit.checkpoint import manifest
from hpcsplit.checkpoint.origin import Origin, compare
from hpcsplit.config.load import tables
from hpcsplit.errors import CheckpointError, ConfigError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.plan.setting import Setting
from hpcsplit.run import provenance
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.hybrid import initials, of_initials


@dataclass(frozen=True)
class Asked:
    """What the command line asks of a start, besides the configuration.

    Attributes:
        source: the run that this one is to begin with.
        checkpoint: the name of the one there; "": the newest.
        optimizer: with the state of its optimizer.
        extend: plan the learning rates anew where the past ones depend on the number of epochs.
        dry_run: check everything and pass one mini-batch through all stages, but train and leave nothing.
        loudness: -1 for errors and the closing lines only, 1 for every action of rank 0.
    """

    source: RunDir | None = None
    checkpoint: str = ""
    optimizer: bool = False
    extend: bool = False
    dry_run: bool = False
    loudness: int = 0


@dataclass(frozen=True)
class Epochs:
    """The epochs of a run that goes on.

    Attributes:
        phases: the kinds of all epochs, where they do not follow from the configuration.
        earlier: fingerprints that the checkpoint may have in place of the configuration's own.
        notes: what there is to say of it.
    """

    phases: tuple[Phase, ...] = ()
    earlier: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def epochs_of(setting: Setting, run_dir: RunDir, *, extend: bool = False) -> Epochs:
    """The epochs of the run in this directory, which may have been begun with another number of them.

    Those that are done stay what they were, in kind and in their learning rates; the others are planned as in a run of
    so many epochs.

    Args:
        extend: past learning rates may be others than those of a run of so many epochs.

    Raises:
        CheckpointError: there are more epochs already, or the past learning rates would be others.
    """
    if not (there := ckpt.complete(run_dir.checkpoints)):
        return Epochs()
    folder, saved = there[0], manifest.read(there[0])
    here, planned = setting.config.schedule.epochs, tables(saved.config).get("schedule", {}).get("epochs")
    recorded = () if setting.decides else tuple(of_initials(saved.phases))
    if planned == here or not isinstance(planned, int):
        return Epochs(recorded)
    before = setting.replaced(setting.config.with_values({"schedule.epochs": planned}, "the checkpoint"))
    schedule = before.config.fingerprint()["schedule"]
    if saved.fingerprints.get("schedule") != schedule:
        return Epochs()  # something else is different, too, which is refused later
    before, done = before.following(recorded), saved.epochs_done + bool(saved.step)
    what = f"checkpoint {folder} was made with another schedule: schedule.epochs = {planned} there, {here} here"
    if here < done:
        raise CheckpointError(
            f"{what}, but {done} epochs are done or under way; set it to {done} or more, or take another --run-dir"
        )
    phases = before.phases[:done] + setting.phases[done:]
    after = setting.following(phases)
    notes = [f"the run has {here} epochs now, in place of {planned}; the {done} that are done stay as they are"]
    steps = len(setting.batch_sizes)
    ends = [(epoch, step, steps) for epoch in range(done) for step in (0, steps - 1)]
    if any(before.learning_rate(*place) != after.learning_rate(*place) for place in ends):
        last = before.learning_rate(done - 1)
        rates = (
            f"the learning rate of epoch {done + 1} is {after.learning_rate(min(done, here - 1)):.4g}, after {last:.4g}"
        )
        if not extend:
            raise CheckpointError(
                f"{what}, and those that are done had other learning rates than in a run of {here} "
                f'(optim.lr_schedule = "{setting.config.optim.lr_schedule}"); add --extend to go on with those of one '
                f"({rates}), change it back, or begin another --run-dir with --continue-from {run_dir.path}"
            )
        notes.append(f"--extend: {rates} in epoch {done}")
    if phases == setting.phases or setting.decides:
        phases = ()
    else:
        notes.append(f"their kinds stay {initials(phases[:done])}, where {here} epochs would begin otherwise")
    return Epochs(phases, {"schedule": schedule}, tuple(notes))


def origin_of(setting: Setting, run_dir: RunDir, asked: Asked) -> tuple[Origin | None, tuple[str, ...]]:
    """What the run in this directory begins with, or has begun with; and what there is to say of it.

    The first start decides.  Where it was stopped before its first checkpoint, the next one begins in the same way.

    Raises:
        ConfigError: the run has begun with something else, or the optimizer is another one.
        CheckpointError: the checkpoint is absent, damaged, or of a network that has nothing in common with this one.
    """
    there, known = ckpt.complete(run_dir.checkpoints), _known(run_dir)
    begun = (bool(there) or run_dir.finished_epochs() > 0) and not run_dir.take_over
    source = asked.source
    if source and os.path.realpath(source.path) == os.path.realpath(run_dir.path):
        raise ConfigError(
            f"--continue-from {source.path} is the run directory itself; leave it out to go on there, or choose "
            "another --run-dir to begin a new run"
        )
    if source and begun:
        _check_same(run_dir, source, asked, known)
    if there:
        note = f"{run_dir.path} has a checkpoint: the run goes on from there, --continue-from was for its first start"
        return known, (note,) if source else ()
    if source and not begun and not (known and _same(source, asked, known) and known.still_there()):
        known = Origin.of(source.path, source.checkpoint(asked.checkpoint), optimizer=asked.optimizer)
    if not known:
        return None, ()
    if known.optimizer:
        _check_optimizer(setting, known)
    return known, (compare(known, setting.net),)


def _known(run_dir: RunDir) -> Origin | None:
    """What an earlier start in the directory has begun with; its checkpoint knows best."""
    if there := ckpt.complete(run_dir.checkpoints):
        return Origin.from_json(manifest.read(there[0]).origin)
    starts = provenance.starts(run_dir.provenance)
    return Origin.from_json(starts[-1].get("begins_with")) if starts else None


def _same(source: RunDir, asked: Asked, known: Origin) -> bool:
    meant = asked.checkpoint
    name = ckpt.folder_name(int(meant)) if meant.isdecimal() and len(meant) < 10 else meant
    named = name in ("", "latest", ckpt.BEST, os.path.basename(known.folder))
    return named and os.path.realpath(source.path) == known.run and asked.optimizer == known.optimizer


def _check_same(run_dir: RunDir, source: RunDir, asked: Asked, known: Origin | None) -> None:
    if known and (_same(source, asked, known) or _moved(source, asked, known)):
        return
    what = f"{known.folder}{' and its optimizer' * known.optimizer}" if known else "nothing but its initial weights"
    raise ConfigError(
        f"{run_dir.path} has begun with {what}, not with {source.path}{' --with-optimizer' * asked.optimizer}; "
        "leave --continue-from out to go on there, or choose another --run-dir"
    )


def _moved(source: RunDir, asked: Asked, known: Origin) -> bool:
    """Whether it is the same checkpoint by another way."""
    try:
        found = Origin.of(source.path, source.checkpoint(asked.checkpoint), optimizer=asked.optimizer)
    except CheckpointError:
        return False
    return (found.sha256, found.optimizer) == (known.sha256, known.optimizer)


def _check_optimizer(setting: Setting, origin: Origin) -> None:
    """Raise ConfigError where its optimizer keeps another state than this run's."""
    optim: Mapping[str, Any] = tables(manifest.read(origin.checkpoint).config).get("optim", {})
    there, here = optim.get("name"), setting.config.optim.name
    if there != here:
        raise ConfigError(
            f'--with-optimizer: {origin.folder} has the state of "{there}", optim.name is "{here}"; leave '
            "--with-optimizer out, or change optim.name"
        )
