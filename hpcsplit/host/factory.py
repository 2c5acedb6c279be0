"""A function of the user's own that a configuration names: "package.module:factory"."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hpcsplit.errors import ConfigError
from hpcsplit.host.blame import line_defined, line_raised, said

_given: dict[str, Callable[..., Any]] = {}  # what this process has made itself, by name


@contextmanager
def given(name: str, factory: Callable[..., Any]) -> Iterator[str]:
    """Within the block `name` is this function, and nothing is imported for it."""
    before = _given.get(name)
    _given[name] = factory
    try:
        yield name
    finally:
        _given.pop(name)
        if before:
            _given[name] = before


def is_given(name: str) -> bool:
    """Whether a program has said what this name is."""
    return name in _given


def find_factory(key: str, name: str) -> Callable[..., Any]:
    """The function that `key` = "package.module:factory" names, or that a program has `given`.  ConfigError where there
    is none."""
    if name in _given:
        return _given[name]
    module_name, factory_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # user code runs here
        line = line_raised(error)
        raise ConfigError(
            f'{key} = "{name}": importing {module_name} failed ({said(error)}{f", {line}" if line else ""}); '
            "is its folder on PYTHONPATH?"
        ) from error
    factory: Callable[..., Any] | None = getattr(module, factory_name, None)
    if not callable(factory):
        raise ConfigError(f'{key} = "{name}": {module_name} has no function {factory_name}; define it there')
    return factory


def call_factory(key: str, name: str, **offered: Any) -> Any:
    """What it returns, called with those of the keywords that it takes.  ConfigError, with its line, where it fails."""
    factory = find_factory(key, name)
    try:
        takes = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # written in C
        takes = []
    if not any(each.kind is each.VAR_KEYWORD for each in takes):
        names = {each.name for each in takes}
        offered = {keyword: value for keyword, value in offered.items() if keyword in names}
    try:
        return factory(**offered)
    except Exception as error:
        words = ", ".join(f"{keyword}={value!r}" for keyword, value in offered.items())
        raise ConfigError(
            f'{key} = "{name}": the call {name.split(":")[1]}({words}) failed ({said(error)}); correct the factory, '
            f"{line_raised(error) or line_defined(factory)}"
        ) from error
