"""Combinations of keys that cannot be run, found without importing anything heavy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hpcsplit.config.config import nearest
from hpcsplit.config.declared import DeclaredMethod
from hpcsplit.config.option import names_code
from hpcsplit.config.rules import check_rules
from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import lookup
from hpcsplit.tasks.catalog import LOSSES

if TYPE_CHECKING:
    from hpcsplit.config.config import Config


AUTO = "auto"
_EXAMPLES = {"generation": "resnet20-vae", "language": "one of your own"}


def parse_ratio(text: str) -> tuple[int, int]:
    """'1:4' -> (1, 4): serial and parallel epochs of one cycle."""
    result = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text)
    if not result or int(result[1]) + int(result[2]) == 0:
        raise ConfigError(
            f'schedule.ratio = "{text}" must be serial:parallel, two whole numbers such as "1:4", or "auto"'
        )
    return int(result[1]), int(result[2])


def check_cuts(cuts: tuple[int, ...] | str, stages: int) -> None:
    """Raise ConfigError for cuts that are no increasing block numbers or no known balance."""
    if isinstance(cuts, str):
        if cuts not in ("time", "flops", "params"):
            raise ConfigError(f'split.cuts = "{cuts}" is not "time", "flops", "params" or a list of block numbers')
        return
    if list(cuts) != sorted(set(cuts)) or (cuts and cuts[0] < 1):
        raise ConfigError(f"split.cuts = {list(cuts)} must be increasing block numbers from 1")
    if stages and stages != len(cuts) + 1:
        raise ConfigError(
            f"split.cuts = {list(cuts)} makes {len(cuts) + 1} stages, run.stages says {stages}; change one of them"
        )


def check_combination(config: Config, method: DeclaredMethod) -> None:
    """Raise ConfigError where two keys exclude each other."""
    _check_task(config)
    check_cuts(config.split.cuts, config.run.stages)
    schedule = config.schedule
    _check_ratio(config, method)
    if schedule.warmup > schedule.epochs:
        raise ConfigError(f"schedule.warmup = {schedule.warmup} is more than schedule.epochs = {schedule.epochs}")
    if 0 < config.data.batch_size < schedule.microbatches:  # 0: all training samples
        raise ConfigError(
            f"schedule.microbatches = {schedule.microbatches} is more than data.batch_size = {config.data.batch_size}"
        )
    if schedule.patience and not config.data.validation:
        raise ConfigError(
            f"schedule.patience = {schedule.patience} judges epochs by samples that are not trained on: set "
            "data.validation, such as to a tenth of the training samples"
        )
    if config.data.copies > 1 and not config.data.augment:
        raise ConfigError(
            f"data.copies = {config.data.copies}: copies are crops and flips, and data.augment = false allows none; "
            "set it to true, or copies to 1"
        )
    if config.method.frozen and not method.parallel:
        raise ConfigError(f"method.frozen is a control of parallel epochs; {method.name} has none")
    _check_method(config, method)


def _check_ratio(config: Config, method: DeclaredMethod) -> None:
    """Raise ConfigError for a ratio that leaves no room for the warm-up, or that nothing can decide."""
    schedule = config.schedule
    if schedule.ratio == AUTO:
        if not method.parallel:
            return
        if not config.data.validation:
            raise ConfigError(
                'schedule.ratio = "auto" judges epochs by samples that are not trained on: set data.validation, such '
                "as to a tenth of the training samples"
            )
        if config.run.evaluate_every > 1:
            raise ConfigError(
                f'schedule.ratio = "auto" looks at every epoch, run.evaluate_every = {config.run.evaluate_every}; '
                "set it to 1"
            )
        if schedule.lr_phases != "run":
            raise ConfigError(
                f'schedule.lr_phases = "{schedule.lr_phases}" needs to know which epochs are exact, '
                'schedule.ratio = "auto" decides that on the way; leave lr_phases out, or take a fixed ratio'
            )
        return
    serial, parallel = parse_ratio(schedule.ratio)
    if method.parallel and serial:
        cycles, rest = divmod(schedule.epochs, serial + parallel)
        if schedule.warmup > cycles * serial + rest:
            raise ConfigError(
                f"schedule.warmup = {schedule.warmup} is more than the {cycles * serial + rest} serial epochs that "
                f'ratio "{schedule.ratio}" leaves of {schedule.epochs}; lower warmup or raise epochs'
            )


def _check_task(config: Config) -> None:
    """Raise ConfigError for a name of no network, or of one that has another output than the task compares."""
    name, task = config.model.name, config.model.task
    wanted = lookup(name).task
    if wanted and task != wanted and (wanted, task) != ("classification", "regression"):  # any vector will do
        raise ConfigError(
            f'model.task = "{task}": {name} is made for {wanted}; set model.task = "{wanted}", or take a network '
            f"such as {_EXAMPLES.get(task, 'resnet20')}"
        )
    loss = config.model.loss
    if not loss or names_code(loss):
        return
    if loss not in LOSSES:
        raise ConfigError(
            f'model.loss = "{loss}" is not one of {", ".join(LOSSES)}, nor package.module:factory'
            f"{nearest(loss, LOSSES)}"
        )
    if task not in LOSSES[loss][1]:
        fitting = [name for name, (_, tasks) in LOSSES.items() if task in tasks]
        raise ConfigError(
            f'model.loss = "{loss}" does not fit model.task = "{task}"; take {", ".join([*fitting, "one of your own"])}'
        )


def check_method_stages(method: DeclaredMethod, stages: int) -> None:
    """Raise ConfigError where the method cannot run in so many stages."""
    if method.stages and stages > method.stages:
        raise ConfigError(f"{stages} stages: {method.name} is sequential and runs on {method.stages} rank; start one")


def _check_method(config: Config, method: DeclaredMethod) -> None:
    """Raise ConfigError for what this method cannot train, or cannot train in this way."""
    ratio = config.schedule.ratio
    check_method_stages(method, config.split.stages or config.run.stages)
    if method.network and config.model.name != method.network:
        raise ConfigError(
            f'model.name = "{config.model.name}": {method.name} works layer by layer and trains the '
            f'"{method.network}" only; choose that, or another method'
        )
    if method.full_batch and (ratio == AUTO or parse_ratio(ratio)[0]):
        raise ConfigError(
            f'schedule.ratio = "{ratio}": {method.name} goes on from iteration to iteration, and an '
            'exact epoch between them would throw its variables away; set schedule.ratio = "0:1", with exact epochs '
            "at the start only (schedule.warmup)"
        )
    if method.one_batch and config.data.batch_size:
        raise ConfigError(
            f"data.batch_size = {config.data.batch_size}: {method.name} takes all training samples at once; "
            "set data.batch_size = 0"
        )
    if config.optim.ema and method.full_batch:
        raise ConfigError(
            f"optim.ema = {config.optim.ema:g}: an iteration of {method.name} is one step over all samples, which no "
            "average follows; leave optim.ema out, or choose another method"
        )
    if config.data.last_batch == "drop" and method.parallel and not method.augments:
        raise ConfigError(
            f'data.last_batch = "drop": {method.name} keeps variables of every sample, and each must be visited; set '
            'data.last_batch = "join"'
        )
    check_rules(config, method)
