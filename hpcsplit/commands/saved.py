"""A checkpoint of a run directory as a command on it finds it: which one, by which configuration, with what weights."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from hpcsplit.checkpoint import manifest
from hpcsplit.checkpoint.manifest import Manifest
from hpcsplit.checkpoint.state import Whole, load_weights, read_weights
from hpcsplit.config import Config, load, resolve
from hpcsplit.config.option import names_code
from hpcsplit.data.catalog import opener
from hpcsplit.data.dataset import Dataset, Part, fingerprint
from hpcsplit.data.inputs import Inputs
from hpcsplit.errors import CheckpointError, ConfigError, DataError, LaunchError
from hpcsplit.host.factory import is_given
from hpcsplit.host.launchers import claimed_size
from hpcsplit.host.printable import printable
from hpcsplit.nets.code import change_of, said_of
from hpcsplit.nets.statedict import tensors_of
from hpcsplit.plan.setting import Setting
from hpcsplit.run import trust
from hpcsplit.run.folder import RunDir
from hpcsplit.stage.stage import Stage

_VOUCH = "give the run's own CONFIG.toml with --config"


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint of a run directory."""

    run: RunDir
    folder: Path
    manifest: Manifest
    setting: Setting  # of what a command makes of the run's own configuration (`own_config`)
    data_root: str  # where the run had its data, for people
    average: bool = False  # the moving average of its weights is meant
    vouched: bool = False  # the user has named a file with the configuration

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

    def network(self, whole: Whole) -> nn.Sequential:
        """The network with these weights, to be used, in evaluation mode, on the CPU."""
        net = self.setting.network()
        load_weights(net, *whole)
        return net.eval()

    def device(self) -> torch.device:
        """Where this process computes alone, with as many threads as the run asks for and the machine has."""
        run, cores = self.setting.config.run, len(os.sched_getaffinity(0))
        torch.set_num_threads(min(run.threads or cores, cores))
        return torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")

    def stage(self) -> Stage:
        """The whole network as one stage, on the device and in the precision of the run, in evaluation mode."""
        stage = self.setting.stage(self.setting.network(), 0, (), self.device())
        load_weights(stage.blocks, *self.weights())
        stage.blocks.eval()
        return stage

    def inputs(self) -> Inputs:
        """What its samples are; of an older checkpoint as the data say, so these must be there (as `data`)."""
        if (recorded := self.recorded_inputs()) is None:
            self.data()
            return self.setting.inputs
        return recorded

    def recorded_inputs(self) -> Inputs | None:
        """What the checkpoint says of the samples; None for one of an older version.  CheckpointError where it is
        damaged."""
        said = self.manifest.inputs
        return Inputs.from_dict(said, f"checkpoint {self.folder}") if said else None

    def data(self) -> Dataset[Part]:
        """The data of the run, from where the user says.

        Raises:
            DataError: they are not there.
            CheckpointError: they are others, or something else differs from what the run was made with.
            ConfigError: they are made by code, and only the run directory says so.
        """
        name = self.setting.config.data.name
        if names_code(name) and not self.vouched and not is_given(name):
            trust.check_code({"data.name": name}, self.run.config, _VOUCH)
        vars(self.setting).pop("spec", None)  # what the checkpoint says of them has no sizes
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

    def on(self, name: str) -> Saved:
        """The same with another data set of such samples and classes, whose samples are normalised as the run's own.

        Raises:
            DataError: it is not there.
            ConfigError: its samples or classes are others.
        """
        old = self.setting
        own = replace(old.config.data, name=name, limit_train=0, limit_test=0, validation=0, copies=1)
        setting = Setting(replace(old.config, data=own))
        for what, here, there in (
            ("samples of shape", setting.input_shape, old.input_shape),
            ("so many classes:", setting.spec.classes, old.spec.classes),
        ):
            if here != there:
                raise ConfigError(f"{name} has {what} {here}, the run's network takes {there}; take another data set")
        inputs = self.recorded_inputs() or old.inputs
        if inputs.mean:
            moments = torch.tensor(inputs.mean), torch.tensor(inputs.std)
            vars(setting)["data"] = replace(setting.data, known=moments)
        return replace(self, setting=setting)

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
    return opened(run, name, config_path, data_root, average=average)


def opened(run: RunDir, name: str, config_path: Path | None, data_root: str = "", *, average: bool = False) -> Saved:
    """As `find`, in a process that may be one of several."""
    chosen = run.checkpoint(name)
    config = own_config(run, config_path, data_root)
    said, setting = manifest.read(chosen), Setting(config)
    saved = Saved(run, chosen, said, setting, run.load_config().data.root, average, config_path is not None)
    if opener(config.data.name) and (inputs := saved.recorded_inputs()):  # the data need not be there
        setting.with_spec(inputs.spec(config.data.name))
    return saved


def own_config(run: RunDir, config_path: Path | None, data_root: str = "") -> Config:
    """The configuration of a run as its directory has it, overrides included, but for what reaches outside of it.

    A run directory may come from somebody else.  So it is the user who says where data are, by `data_root` or by the
    file, whether they may be downloaded, and whether blocks are compiled; and the file vouches for functions of the
    user's own, which are code to be run.  An optimizer of the user's is not needed.

    Raises:
        ConfigError: as `load`; or the file names another network or function; or a key is "package.module:factory", no
            program has given it, and only the run directory says so.
    """
    config, theirs = run.load_config(), load(config_path, recorded=True) if config_path else None
    if names_code(config.optim.name):  # nothing is trained
        config = replace(config, optim=resolve({}).optim)
    code = {key: name for key, name in config.code().items() if not is_given(name)}
    tree = (theirs or config).as_dict()
    for key, name in {"model.name": config.model.name, **code}.items():
        section, _, last = key.partition(".")
        if (other := tree[section][last]) != name:
            raise ConfigError(
                f'{config_path} has {key} = "{other}", {run.config} has "{name}"; give the file that the run was '
                "started with"
            )
    if not theirs:
        code.pop("data.name", None)  # asked for where samples are wanted (Saved.data)
        trust.check_code(code, run.config, _VOUCH)
    own = theirs or resolve({})
    return replace(
        config,
        data=replace(config.data, root=data_root or own.data.root, download=own.data.download),
        model=replace(config.model, weights=""),
        store=own.store,
        run=replace(config.run, torch_compile=own.run.torch_compile, tensorboard=own.run.tensorboard),
    )


def warn(sentence: str) -> None:
    """On standard error, so that what is printed can still be parsed."""
    print(printable(f"hpcsplit: {sentence}"), file=sys.stderr, flush=True)
