"""One key of a configuration: its type, default, unit, limits and sentence."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hpcsplit.errors import ConfigError

LIBRARIES = ("torchvision", "timm")  # "torchvision:resnet18" names no function of the user's
Value = int | float | str | bool | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Option:
    """A configuration key."""

    name: str
    kind: str  # the annotation that it was declared with, as text
    default: Any
    doc: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    above: float | None = None
    high: float | None = None
    # Conditions on other keys under which no value but the default is taken, with what is said then (rules.py).
    refused_if: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # Earlier versions did not have it; at its default it is no part of what a checkpoint must agree with.
    later: bool = False
    # It may name a function of the user's, "package.module:factory", which runs when it is used.
    code: bool = False
    # Its variables have a value for so many x so many pixels.
    cells: bool = False
    # "raise" or "lower", by what it helps against: "memory" or "disk" that is short, "divergence".
    cures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # A text as the program spells it, from one that means the same; HpcsplitError where it means nothing.
    spelling: Callable[[str], str] | None = None

    def read(self, text: str) -> Any:
        """The value that a word of the command line means: a TOML value, or what people write for one."""
        if self.kind == "str":
            return parsed if isinstance(parsed := _toml(text), str) else text
        if self.kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        return number_in(text) if number_in(text) is not None else _toml(text)

    def accept(self, value: Any, where: str) -> Any:
        """The value in its declared type, or a ConfigError that says what was given and what is allowed."""
        value = self._typed(value, where)
        if self.spelling:
            value = self.spelling(value)
        if self.choices and isinstance(value, str) and value not in self.choices:
            raise ConfigError(f"{where} = {value!r} is not one of {', '.join(self.choices)}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str | bool):
                continue
            if isinstance(number, float) and not math.isfinite(number):
                sentence = f"{where} = {number} is not a finite number; it must be one"
                raise ConfigError(", ".join([sentence, *self._limits()]))
            if self.low is not None and number < self.low:
                raise ConfigError(f"{where} = {number} is below its smallest value {self.low}")
            if self.above is not None and number <= self.above:
                raise ConfigError(f"{where} = {number} must be greater than {self.above}")
            if self.high is not None and number > self.high:
                raise ConfigError(f"{where} = {number} is above its largest value {self.high}")
        return value

    def _typed(self, value: Any, where: str) -> Any:
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ConfigError(f"{where} is beyond the whole numbers of TOML, -2^63 to 2^63 - 1")
        if self.kind == "bool" and isinstance(value, bool):
            return value
        if self.kind == "int" and _is_whole(value):
            return int(value)
        if self.kind == "float" and (isinstance(value, float) or _is_whole(value)):
            return float(value)
        if "str" in self.kind and isinstance(value, str):
            if any("\ud800" <= c <= "\udfff" for c in value):  # bytes of the command line that are not UTF-8
                raise ConfigError(f"{where} = {value!r} is not a text in UTF-8")
            return value
        if self.kind == "tuple[float, ...]" and isinstance(value, list | tuple):
            if all(isinstance(number, float) or _is_whole(number) for number in value):
                return tuple(map(float, value))
            raise ConfigError(f"{where} = {list(value)!r} must hold numbers only")
        if "tuple" in self.kind and isinstance(value, list | tuple):
            if all(map(_is_whole, value)):
                return tuple(map(int, value))
            raise ConfigError(f"{where} = {list(value)!r} must hold whole numbers only")
        given = {bool: "a truth value", int: "a whole number", float: "a number", str: "a text", list: "a list"}
        kind = given.get(type(value), f"a {type(value).__name__}")
        said = f"{where} = {value!r} is {kind}; it must be {_KINDS[self.kind]}"
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+,\d+", value):
            said += f"; the decimal sign is a point: {value.replace(',', '.')}"
        raise ConfigError(", ".join([said, *(self._limits() if isinstance(value, float) else [])]))

    def _limits(self) -> list[str]:
        limits = {">=": self.low, ">": self.above, "<=": self.high}
        return [f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None]

    def describe(self) -> str:
        """One line of help: default, unit, limits, sentence."""
        facts = [f"default {show(self.default)}", self.unit, " | ".join(self.choices), *self._limits()]
        return f"{self.doc} ({', '.join(filter(None, facts))})"


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[float, ...]": "a list of numbers",
    "tuple[int, ...] | str": "a list of whole numbers or a text",
}


def names_code(value: Any) -> bool:
    """Whether a value is "package.module:factory", a function of the user's."""
    if not isinstance(value, str) or value.partition(":")[0] in LIBRARIES:
        return False
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value) is not None


def number_in(text: str) -> int | float | None:
    """The number that a text is, written as people do: 1e3, .1, 1., 1_000, 007; None where it is none."""
    text = text.strip()
    if not re.fullmatch(
        r"[+-]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)(e[+-]?\d+)?|[+-]?(inf(inity)?|nan)", text, re.IGNORECASE
    ):
        return None
    for kind in (int, float):
        with suppress(ValueError):  # not of this kind, or with more digits than Python takes
            return kind(text)
    return None


def _toml(text: str) -> Any:
    """The value of a TOML text; the text itself where it is none."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # TOML errors, and numbers or nesting that Python refuses
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer() and abs(value) < 2**53  # beyond, floats skip numbers
    return isinstance(value, int) and not isinstance(value, bool)


def option(default: Any, doc: str, **facts: Any) -> Any:
    """Declare a dataclass field as a configuration key, with these of an `Option`'s attributes.

    All arguments are literals: method files are read, not run.
    """
    return dataclasses.field(default=default, metadata={"doc": doc, **facts})


def options_of(section: type) -> tuple[Option, ...]:
    """The options declared by a dataclass."""
    return tuple(
        Option(field.name, str(field.type), field.default, **field.metadata)
        for field in dataclasses.fields(section)
        if "doc" in field.metadata
    )


def cures(options: Iterable[Option], trouble: str) -> list[str]:
    """What to do with those of a method's options that help, such as "lower method.beta"."""
    return [f"{o.cures[trouble]} method.{o.name}" for o in options if trouble in o.cures]


def show(value: Any) -> str:
    """A value as TOML text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = "".join(_ESCAPES.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in value)
        return f'"{escaped}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(show(v) for v in value)}]"
    return repr(value)


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
