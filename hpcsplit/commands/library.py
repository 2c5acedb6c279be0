"""`hpcsplit.train`: a run from a program or a notebook, in one process or on every rank of mpirun."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcsplit.commands import train as command
from hpcsplit.commands.past import Run
from hpcsplit.config import Config, load, resolve
from hpcsplit.config.option import show
from hpcsplit.errors import ConfigError
from hpcsplit.host import stopping
from hpcsplit.host.chance import nothing_drawn
from hpcsplit.host.factory import given
from hpcsplit.host.launchers import claimed_size
from hpcsplit.plan.begin import Asked
from hpcsplit.run.folder import RunDir

Model = nn.Module | Callable[..., nn.Module]
Data = tuple[Any, Any] | Callable[..., tuple[Any, Any]]


def train(
    config: str | os.PathLike[str] | Mapping[str, Any],
    *,
    model: Model | None = None,
    data: Data | Mapping[str, Any] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    continue_from: str | os.PathLike[str] | None = None,
    checkpoint: str = "",
    **overrides: Any,
) -> Run:
    """Train a network, or continue a run, as `hpcsplit train` does.

    In one process all stages take turns (`run.stages`, or as many as `split.cuts` makes; one by default).  Under
    ``mpirun -n K python program.py`` every rank calls this with the same arguments and has one stage; there a rank that
    fails ends the whole job.

    >>> config = {"data": {"name": "digits", "limit_train": 64}, "model": {"name": "mlp", "depth": 2, "width": 8}}
    >>> config |= {"method": {"name": "backprop"}, "schedule": {"epochs": 1}, "run": {"baseline": False}}
    >>> run = train(config, run_dir=folder / "run", optim={"lr": 0.05}, **{"data.batch_size": 32})  # doctest: +ELLIPSIS
    hpcsplit: mlp on digits ...
    >>> run.summary["epochs"]
    1

    Args:
        config: the path of a TOML file, or its sections as a dict: {"data": {"name": "digits"}, ...}.
        model: the network, an nn.Sequential of blocks (its weights are where training begins; it stays as it is), or a
            function (input_shape, classes) that makes one; in place of model.name.
        data: (train, test), each a map-style data set of pairs (x, y), or a pair of arrays or tensors (x, y) of all
            samples; or a function that returns them (data/factory.py); in place of data.name.  A data set is read by
            this process, that of a function which others can import ahead of it, by data.workers.  A dict is section
            [data], as other keywords are.
        run_dir: default: runs/<name of the file>-<seed>; a run that is there continues.
        continue_from: a run directory with whose weights a new run begins, those of its newest `checkpoint`, or of the
            one that this names ("best", "7").
        overrides: values in place of the configuration's: optim={"lr": 0.1}, or **{"optim.lr": 0.1}.

    Raises:
        ConfigError, DataError: what is asked for cannot be; the sentence says what to change.
        CheckpointError: the run directory has another run, or a checkpoint that is damaged.
        LaunchError: the number of ranks is not that of the stages.
        StoreError, NumericalError: the disk is full; training has diverged.
    """
    changes = _flat({"data": data, **overrides} if isinstance(data, Mapping) else overrides)
    own = None if isinstance(data, Mapping) else data
    with _named(model) as name, _dealt(own) as dealt:
        if name:
            changes["model.name"] = name
        if dealt:
            changes["data.name"] = dealt
        asked = [(key, show(value)) for key, value in changes.items()]
        if isinstance(config, Mapping):
            resolved = resolve(_nested(_flat(config)), asked, source="train()")
        else:
            resolved = load(os.fspath(config), asked)
        resolved = _alone(resolved)
        path = Path(run_dir) if run_dir else Path("runs") / f"{resolved.stem}-{resolved.run.seed}"
        folder, there = RunDir(path), RunDir(Path(continue_from)) if continue_from else None
        device = torch.device("cuda") if torch.cuda.is_available() else None
        limits = resolved.run.time_limit, resolved.run.stop_before
        with _as_before(device), stopping.during(*limits) as request:
            try:
                command.train(resolved, folder, request, Asked(there, checkpoint), raises=True)
            finally:
                folder.release()
    return Run(path, model=model)


def _alone(config: Config) -> Config:
    """With several stages in a process that nobody has started others beside, they take turns."""
    if claimed_size()[0] > 1 or max(config.run.stages, config.split.stages) < 2:
        return config
    return config.with_values({"run.runner": "lockstep"}, "train()")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"section.key": value} of nested values, of such keys, or of both."""
    result = dict[str, Any]()
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= {f"{name}.{key}": _plain(each) for key, each in value.items()}
        elif "." in name:
            result[name] = _plain(value)
        else:
            raise ConfigError(f'{name} = {value!r} is no section; write {name}={{"key": value}}, or "section.key"')
    return result


def _plain(value: Any) -> Any:
    """As TOML has it: paths are texts, and numbers of numpy or torch are numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


def _nested(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        result.setdefault(section, {})[key] = value
    return result


@contextmanager
def _named(model: Model | None) -> Iterator[str]:
    """The name by which a configuration finds a network that a program has made; "" where it names its own."""
    if model is None:
        yield ""
        return
    with given(name_of(model), factory_of(model)) as name:
        yield name


@contextmanager
def _dealt(data: Data | None) -> Iterator[str]:
    """The name by which a configuration finds the data of a program; "" where it names its own."""
    if data is None:
        yield ""
    elif callable(data):
        with given(_place_of(data) or "given:data", data) as name:
            yield name
    else:
        with given("given:data", lambda: data) as name:
            yield name


def _place_of(function: Any) -> str:
    """The "module:name" of a function that others can import; else ""."""
    name, module = getattr(function, "__name__", ""), getattr(function, "__module__", "__main__")
    importable = module != "__main__" and getattr(sys.modules.get(module), name, None) is function
    return f"{module}:{name}" if importable else ""


def name_of(model: Model) -> str:
    """What a run calls the network: by its place where others can import the function, else "given:<what it is>"."""
    kind = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "factory")
    return _place_of(model) or f"given:{kind if kind.isidentifier() else 'factory'}"


def factory_of(model: Model) -> Callable[..., object]:
    """What makes the network: a copy of the one that is given."""
    if not isinstance(model, nn.Module):
        return model

    def copied(input_shape: Any, classes: int) -> nn.Module:
        return copy.deepcopy(model)

    return copied


@contextmanager
def _as_before(device: torch.device | None) -> Iterator[None]:
    """A run changes its process: threads, cores, log handlers, random numbers.  This one goes on after it."""
    logger, threads, cores = logging.getLogger("hpcsplit"), torch.get_num_threads(), os.sched_getaffinity(0)
    known, level, deterministic = list(logger.handlers), logger.level, torch.are_deterministic_algorithms_enabled()
    try:
        with nothing_drawn(device):
            yield
    finally:
        for added in [handler for handler in logger.handlers if handler not in known]:
            logger.removeHandler(added)
            added.close()
        logger.setLevel(level)
        torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)
        os.sched_setaffinity(0, cores)
