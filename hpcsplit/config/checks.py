"""Combinations of keys that cannot be run, found without importing anything heavy."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hpcsplit.config.declared import DeclaredMethod
from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import lookup

if TYPE_CHECKING:
    from hpcsplit.config.config import Config

AUTO = "auto"
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "max": max,
    "increasing": lambda values: all(a < b for a, b in pairwise(values)),
    "exact": lambda ratio: ratio == AUTO or parse_ratio(ratio)[0] > 0,
}

# What is refused (see `_check_rules`), before the stages are looked at and after.
_KEYS = {
    "schedule.ratio == 'auto' and facts.parallel and not data.validation": 'schedule.ratio = "auto" judges epochs by '
    "samples that are not trained on: set data.validation, such as to a tenth of the training samples",
    "schedule.ratio == 'auto' and facts.parallel and run.evaluate_every > 1": 'schedule.ratio = "auto" looks at every '
    "epoch, run.evaluate_every = {run.evaluate_every}; set it to 1",
    "schedule.ratio == 'auto' and facts.parallel and schedule.lr_phases != 'run'": "schedule.lr_phases = "
    '"{schedule.lr_phases}" needs to know which epochs are the last exact ones, schedule.ratio = "auto" decides that '
    "on the way; leave lr_phases out, or take a fixed ratio",
    "schedule.warmup > schedule.epochs": "schedule.warmup = {schedule.warmup} is more than schedule.epochs = "
    "{schedule.epochs}",
    "0 < data.batch_size < schedule.microbatches": "schedule.microbatches = {schedule.microbatches} is more than "
    "data.batch_size = {data.batch_size}",  # 0: all training samples
    "data.copies > 1 and not data.augment": "data.copies = {data.copies}: copies are crops and flips, and "
    "data.augment = false allows none; set it to true, or copies to 1",
    "method.frozen and not facts.parallel": "method.frozen is a control of parallel epochs; {facts.name} has none",
}
_OF_THE_METHOD = {
    "facts.network and model.name != facts.network": 'model.name = "{model.name}": {facts.name} works layer by layer '
    'and trains the "{facts.network}" only; choose that, or another method',
    "facts.full_batch and exact(schedule.ratio)": 'schedule.ratio = "{schedule.ratio}": {facts.name} goes on from '
    "iteration to iteration, and an exact epoch between them would throw its variables away; set schedule.ratio = "
    '"0:1", with exact epochs at the start only (schedule.warmup)',
    "facts.one_batch and data.batch_size": "data.batch_size = {data.batch_size}: {facts.name} takes all training "
    "samples at once; set data.batch_size = 0",
    "data.last_batch == 'drop' and facts.parallel and not facts.augments": 'data.last_batch = "drop": {facts.name} '
    'keeps variables of every sample, and each must be visited; set data.last_batch = "join"',
}


def parse_ratio(text: str) -> tuple[int, int]:
    """'1:4' -> (1, 4): serial and parallel epochs of one cycle."""
    result = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text)
    if not result or int(result[1]) + int(result[2]) == 0:
        raise ConfigError(
            f'schedule.ratio = "{text}" must be serial:parallel, two whole numbers such as "1:4", or "auto"'
        )
    return int(result[1]), int(result[2])


def check_combination(config: Config, method: DeclaredMethod) -> None:
    """Raise ConfigError for a name of no network, wrong cuts, and two keys that exclude each other."""
    name, task = config.model.name, config.model.task
    wanted = lookup(name).task
    if wanted and task != wanted:
        raise ConfigError(
            f'model.task = "{task}": {name} is made for {wanted}; set model.task = "{wanted}", or take a network '
            f"such as {'resnet20-vae' if task == 'generation' else 'resnet20'}"
        )
    cuts, stages = config.split.cuts, config.run.stages
    if isinstance(cuts, str):
        if cuts not in ("time", "flops", "params"):
            raise ConfigError(f'split.cuts = "{cuts}" is not "time", "flops", "params" or a list of block numbers')
    elif list(cuts) != sorted(set(cuts)) or (cuts and cuts[0] < 1):
        raise ConfigError(f"split.cuts = {list(cuts)} must be increasing block numbers from 1")
    elif stages and stages != len(cuts) + 1:
        raise ConfigError(
            f"split.cuts = {list(cuts)} makes {len(cuts) + 1} stages, run.stages says {stages}; change one of them"
        )
    schedule = config.schedule
    if schedule.ratio != AUTO:
        serial, parallel = parse_ratio(schedule.ratio)
        cycles, rest = divmod(schedule.epochs, serial + parallel)
        exact = cycles * serial + rest
        if method.parallel and serial and schedule.warmup > exact:
            raise ConfigError(
                f"schedule.warmup = {schedule.warmup} is more than the {exact} serial epochs that ratio "
                f'"{schedule.ratio}" leaves of {schedule.epochs}; lower warmup or raise epochs'
            )
    options = {key: list(v) if isinstance(v, tuple) else v for key, v in config.method.options.items()}
    scope = {**vars(config), "method": SimpleNamespace(frozen=config.method.frozen, **options), "facts": method}
    _check_rules(_KEYS, scope)
    check_method_stages(method, config.split.stages or config.run.stages)
    _check_rules(_OF_THE_METHOD, scope)
    for option in method.options:
        if config.method.options[option.name] != option.default:
            _check_rules(option.refused_if, scope)


def check_method_stages(method: DeclaredMethod, stages: int) -> None:
    """Raise ConfigError where the method cannot run in so many stages."""
    if method.stages and stages > method.stages:
        raise ConfigError(f"{stages} stages: {method.name} is sequential and runs on {method.stages} rank; start one")


def _check_rules(rules: Mapping[str, str], scope: Mapping[str, Any]) -> None:
    """Raise ConfigError, with its sentence, for the first condition that holds.

    Method files are read, not run (declared.py), so a condition is text: Python's comparisons, `and`, `or` and `not`,
    of literals and of keys ("optim.momentum", "method.grow"), what the decorator says ("facts.augments"), and the
    functions above.  Those of an option matter where it has another value than its default.  The sentence may name keys
    in braces.
    """
    for condition, sentence in rules.items():
        if _value(ast.parse(condition, mode="eval").body, scope):
            raise ConfigError(sentence.format(**scope))


def _value(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    match node:
        case ast.BoolOp(op=ast.And()):
            return all(_value(part, scope) for part in node.values)
        case ast.BoolOp():
            return any(_value(part, scope) for part in node.values)
        case ast.UnaryOp(op=ast.Not()):
            return not _value(node.operand, scope)
        case ast.Compare():
            terms = pairwise(_value(term, scope) for term in (node.left, *node.comparators))
            return all(_COMPARISONS[type(op)](*pair) for op, pair in zip(node.ops, terms, strict=True))
        case ast.Attribute(value=ast.Name(id=section), attr=key):
            return getattr(scope[section], key)
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return _FUNCTIONS[name](_value(argument, scope))
    return ast.literal_eval(node)
