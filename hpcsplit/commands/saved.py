"""A checkpoint of a run directory as a command on it finds it: which one, by which configuration, with what weights."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from hpcsplit.checkpoint import manifest
from hpcsplit.checkpoint.manifest import Manifest
from hpcsplit.checkpoint.state import Whole, read_weights
from hpcsplit.config import Config, load, resolve
from hpcsplit.data.dataset import Dataset, fingerprint
from hpcsplit.errors import CheckpointError, ConfigError, DataError, LaunchError
from hpcsplit.host.launchers import claimed_size
from hpcsplit.host.printable import printable
from hpcsplit.nets.code import change_of, said_of
from hpcsplit.nets.statedict import tensors_of
from hpcsplit.plan.setting import Setting
from hpcsplit.run import trust
from hpcsplit.run.folder import RunDir


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint of a run directory."""

    run: RunDir
    folder: Path
    manifest: Manifest
    setting: Setting  # of what a command makes of the run's own configuration (`own_config`)
    data_root: str  # where the run had its data, for people
    average: bool = False  # the moving average of its weights is meant

    @property
    def name(self) -> str:
        return self.folder.name

    def position(self) -> str:
        """Where in the run it stands, in words."""
        done, step = self.manifest.epochs_done, self.manifest.step
        within = f" and {step} steps of the next" if step else ""
        return f"after {done} epoch{'s' * (done != 1)}{within}"

    def weights(self) -> Whole:
        """All weights, or their average, and buffers in the order of the network.  CheckpointError where they are not
        the network's, or there is no average."""
        return read_weights(self.folder, tensors_of(self.setting.net), average=self.average)

    def data(self) -> Dataset:
        """The data of the run, from where the user says.

        Raises:
            DataError: they are not there.
            CheckpointError: they are others, or something else differs from what the run was made with.
        """
        try:
            data = self.setting.data
        except DataError as error:
            if self.setting.config.data.root or not self.data_root or not self.data_root.isprintable():
                raise
            raise DataError(
                f"{error}. The run had them elsewhere, but no data are taken from where a run directory says; if you "
                f"know that folder, add --data.root {shlex.quote(self.data_root)}"
            ) from None
        self.check(fingerprint(data), "model", "data", "images", "seed")
        return data

    def check(self, images: str, *sections: str) -> None:
        """Raise CheckpointError where these parts of the identity are not those that the checkpoint was made with.

        A network whose code has changed since is no error: a warning says so.

        Args:
            images: the fingerprint of the data, or "" where none were read.
        """
        code = self.setting.code
        here = self.setting.identity((), images, code).fingerprints
        theirs = self.manifest.fingerprints
        if note := said_of(change_of(theirs, {**here, **code}), self.name):
            warn(note)
        if changed := [name for name in sections if theirs.get(name) != here[name]]:
            raise CheckpointError(
                f"checkpoint {self.folder} was made with another {' and '.join(changed)} than the configuration says; "
                "give the run's own file as --config, and the folder of the same images as --data.root"
            )


def find(run: RunDir, name: str, config_path: Path | None, data_root: str = "", *, average: bool = False) -> Saved:
    """The checkpoint `name` (RunDir.checkpoint) of a run directory, or the average of its weights; its manifest has
    been verified.

    Raises:
        LaunchError: this is one of several processes.
        CheckpointError: there is none, or none of that name, or its manifest is damaged.
        ConfigError: the configuration cannot be read, or names a network of the user's and --config is not given.
    """
    size, variable = claimed_size()
    if size > 1:
        raise LaunchError(
            f"{variable} says that {size} processes were started, this command is for one: start it without mpirun"
        )
    chosen = run.checkpoint(name)
    config = own_config(run, config_path, data_root)
    return Saved(run, chosen, manifest.read(chosen), Setting(config), run.load_config().data.root, average)


def own_config(run: RunDir, config_path: Path | None, data_root: str = "") -> Config:
    """The configuration of a run as its directory has it, overrides included, but for what reaches outside of it.

    A run directory may come from somebody else.  So it is the user who says where data are, by `data_root` or by the
    file, whether they may be downloaded, and whether blocks are compiled; and the file vouches for a network of the
    user's own, which is code to be run.

    Raises:
        ConfigError: as `load`; or the file names another network; or model.name is "package.module:factory" and only
            the run directory says so.
    """
    config, theirs = run.load_config(), load(config_path) if config_path else None
    if theirs and theirs.model.name != config.model.name:
        raise ConfigError(
            f'{config_path} has model.name = "{theirs.model.name}", {run.config} has "{config.model.name}"; give '
            "the file that the run was started with"
        )
    if not theirs:
        trust.check_code(config.model.name, run.config, "give the run's own CONFIG.toml with --config")
    own = theirs or resolve({})
    return replace(
        config,
        data=replace(config.data, root=data_root or own.data.root, download=own.data.download),
        store=own.store,
        run=replace(config.run, torch_compile=own.run.torch_compile, tensorboard=own.run.tensorboard),
    )


def warn(sentence: str) -> None:
    """On standard error, so that what is printed can still be parsed."""
    print(printable(f"hpcsplit: {sentence}"), file=sys.stderr, flush=True)
