"""The checkpoint of another run that a run begins with (`train --continue-from`), found by rank 0 before the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpcsplit.checkpoint import manifest
from hpcsplit.checkpoint.manifest import Manifest
from hpcsplit.checkpoint.origin import Origin, compare
from hpcsplit.config.load import tables
from hpcsplit.errors import CheckpointError, ConfigError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.plan.setting import Setting
from hpcsplit.run import provenance
from hpcsplit.run.folder import RunDir


@dataclass(frozen=True)
class Begin:
    """What the command line asks for: the run, the name of a checkpoint ("": the newest), its optimizer's state."""

    run: RunDir
    checkpoint: str = ""
    optimizer: bool = False


def origin_of(setting: Setting, run_dir: RunDir, begin: Begin | None) -> tuple[Origin | None, tuple[str, ...]]:
    """What the run in this directory begins with, or has begun with; and what there is to say of it.

    The first start decides.  Where it was stopped before its first checkpoint, the next one begins in the same way.

    Raises:
        ConfigError: the run has begun with something else, or the optimizer is another one.
        CheckpointError: the checkpoint is absent, damaged, or of a network that has nothing in common with this one.
    """
    there, known = ckpt.complete(run_dir.checkpoints), _known(run_dir)
    begun = (bool(there) or run_dir.finished_epochs() > 0) and not run_dir.take_over
    if begin and os.path.realpath(begin.run.path) == os.path.realpath(run_dir.path):
        raise ConfigError(
            f"--continue-from {begin.run.path} is the run directory itself; leave it out to go on there, or choose "
            "another --run-dir to begin a new run"
        )
    if begin and begun:
        _check_same(run_dir, begin, known)
    if there:
        note = f"{run_dir.path} has a checkpoint: the run goes on from there, --continue-from was for its first start"
        return known, (note,) if begin else ()
    if begin and not begun and not (known and _same(begin, known) and known.still_there()):
        known = Origin.of(begin.run.path, begin.run.checkpoint(begin.checkpoint), optimizer=begin.optimizer)
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


def _same(begin: Begin, known: Origin) -> bool:
    named = not begin.checkpoint or os.path.basename(known.folder) == begin.checkpoint
    return named and os.path.realpath(begin.run.path) == known.run and begin.optimizer == known.optimizer


def _check_same(run_dir: RunDir, begin: Begin, known: Origin | None) -> None:
    if known and (_same(begin, known) or _moved(begin, known)):
        return
    what = f"{known.folder}{' and its optimizer' * known.optimizer}" if known else "nothing but its initial weights"
    raise ConfigError(
        f"{run_dir.path} has begun with {what}, not with {begin.run.path}{' --with-optimizer' * begin.optimizer}; "
        "leave --continue-from out to go on there, or choose another --run-dir"
    )


def _moved(begin: Begin, known: Origin) -> bool:
    """Whether it is the same checkpoint by another way."""
    try:
        found = Origin.of(begin.run.path, begin.run.checkpoint(begin.checkpoint), optimizer=begin.optimizer)
    except CheckpointError:
        return False
    return (found.sha256, found.optimizer) == (known.sha256, known.optimizer)


def _check_optimizer(setting: Setting, origin: Origin) -> None:
    """Raise ConfigError where its optimizer keeps another state than this run's."""
    known: Manifest = manifest.read(origin.checkpoint)
    optim: Mapping[str, Any] = tables(known.config).get("optim", {})
    there, here = optim.get("name"), setting.config.optim.name
    if there != here:
        raise ConfigError(
            f'--with-optimizer: {origin.folder} has the state of "{there}", optim.name is "{here}"; leave '
            "--with-optimizer out, or change optim.name"
        )
