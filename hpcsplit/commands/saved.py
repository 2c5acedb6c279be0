"""A checkpoint of a run directory as a command on it finds it: which one, by which configuration, with what weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hpcsplit.assemble import build_network, code_prints, make_identity
from hpcsplit.checkpoint import folder as ckpt
from hpcsplit.checkpoint.whole import Whole, read_weights
from hpcsplit.config import Config, load
from hpcsplit.errors import CheckpointError, ConfigError, LaunchError
from hpcsplit.files.hdf5 import read_attributes
from hpcsplit.nets.code import change_of, said_of
from hpcsplit.nets.statedict import tensors_of
from hpcsplit.printable import printable
from hpcsplit.rundir import RunDir
from hpcsplit.wire.launcher import claimed_size


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint: after `epochs_done` whole epochs and `step` steps of the next one.

    Attributes:
        phases: initials of the kinds of epochs that had been decided, where that happens during the run.
    """

    run: RunDir
    folder: Path
    epochs_done: int
    step: int
    config: Config
    fingerprints: dict[str, str]
    phases: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    def position(self) -> str:
        """Where in the run it stands, in words."""
        within = f" and {self.step} steps of the next" if self.step else ""
        return f"after {self.epochs_done} epoch{'s' * (self.epochs_done != 1)}{within}"

    def weights(self, net: nn.Sequential) -> Whole:
        """All weights and buffers in the order of `net`, which may be on "meta".  CheckpointError where they differ."""
        return read_weights(self.folder, tensors_of(net))

    def check(self, images: str, *sections: str) -> None:
        """Raise CheckpointError where these parts of the identity are not those that the checkpoint was made with.

        A network whose code has changed since is no error: a warning says so.

        Args:
            images: the fingerprint of the data, or "" where none were read.
        """
        code = code_prints(self.config)
        here = make_identity(self.config, build_network(self.config, meta=True), (), images, code).fingerprints
        if note := said_of(change_of(self.fingerprints, {**here, **code}), self.name):
            warn(note)
        if changed := [name for name in sections if self.fingerprints.get(name) != here[name]]:
            raise CheckpointError(
                f"checkpoint {self.folder} was made with another {' and '.join(changed)} than the configuration says; "
                "give the run's own file as --config, with data.root at the same images"
            )


def find(run: RunDir, name: str, config_path: Path | None) -> Saved:
    """The checkpoint `name` ("": the newest complete one) of a run directory; its manifest has been verified.

    Raises:
        LaunchError: this is one of several processes.
        CheckpointError: there is none, or none of that name, or its manifest is damaged.
        ConfigError: the configuration cannot be read, or names a network of the user's and --config is not given.
    """
    _alone()
    chosen = _choose(run, name)
    config = own_config(run, config_path)
    ckpt.verify(chosen, [ckpt.MANIFEST])
    manifest = read_attributes(chosen / ckpt.MANIFEST)
    try:
        prints: dict[str, Any] = json.loads(manifest["fingerprints"])
        done, step = int(manifest["epochs_done"]), int(manifest["step"])
        return Saved(run, chosen, done, step, config, dict(prints), manifest.get("phases", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {chosen} is of another version of this program: its {ckpt.MANIFEST} cannot be understood "
            f"({type(error).__name__}: {error}); use the version that wrote it"
        ) from None


def own_config(run: RunDir, config_path: Path | None) -> Config:
    """The configuration of a run as its directory has it, overrides included.

    The user's file says where the data are now, and vouches for a network of the user's own: that is code to be run,
    and a run directory may come from somebody else.

    Raises:
        ConfigError: as `load`; or the file names another network; or model.name is "package.module:factory" and only
            the run directory says so.
    """
    config = run.load_config()
    if config_path:
        theirs = load(config_path)
        if theirs.model.name != config.model.name:
            raise ConfigError(
                f'{config_path} has model.name = "{theirs.model.name}", {run.config} has "{config.model.name}"; give '
                "the file that the run was started with"
            )
        return replace(config, data=replace(config.data, root=theirs.data.root))
    if ":" in config.model.name:
        raise ConfigError(
            f'model.name = "{config.model.name}" in {run.config} names code to be run, which is not taken from a run '
            "directory; give the run's own CONFIG.toml with --config"
        )
    return config


def warn(sentence: str) -> None:
    """On standard error, so that what is printed can still be parsed."""
    print(printable(f"hpcsplit: {sentence}"), file=sys.stderr, flush=True)


def _alone() -> None:
    size, variable = claimed_size()
    if size > 1:
        raise LaunchError(
            f"{variable} says that {size} processes were started, this command is for one: start it without mpirun"
        )


def _choose(run: RunDir, name: str) -> Path:
    try:
        there = ckpt.complete(run.checkpoints)
    except OSError as error:
        raise CheckpointError(f"{run.checkpoints} cannot be read: {error.strerror}; is it the run directory?") from None
    if not there:
        raise CheckpointError(
            f"{run.path} has no complete checkpoint (looked in {run.checkpoints}); is it the run directory?"
        )
    if not name:
        return there[0]
    for folder in there:
        if folder.name == name:
            return folder
    raise CheckpointError(f"{run.path} has no complete checkpoint {name}; it has {_listing(there)}")


def _listing(folders: Sequence[Path], most: int = 8) -> str:
    names = [f.name for f in folders]
    return ", ".join(names[:most]) + (f" and {len(names) - most} older ones" if len(names) > most else "")
