"""A TOML file and command-line overrides become one frozen `Config`, or one clear sentence."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcsplit.config.checks import check_combination
from hpcsplit.config.config import SECTIONS, Config, MethodSection, nearest, option_tree
from hpcsplit.config.declared import declared_methods
from hpcsplit.config.option import Option, number_in, options_of, show
from hpcsplit.config.synonyms import meant, other_section
from hpcsplit.errors import ConfigError, UsageError
from hpcsplit.nets.catalog import of_earlier

_COMMAND_LINE = "command line"  # the origin of a value whose text is still to be read


def load(
    path: str | Path,
    overrides: Iterable[tuple[str, str]] = (),
    *,
    read: Callable[[Path], bytes] = Path.read_bytes,
    recorded: bool = False,
) -> Config:
    """Read, override, complete and check a TOML file, whose content `read` gives.

    `overrides` are pairs ("section.key", text); the text is a TOML value, or one as `Option.read` takes it.  With
    another method.name than the file's, the file's keys that only its own method has are left out.  A file that was
    `recorded` with a run may be of an earlier version, whose names mean what they meant then.

    ConfigError where the file cannot be read, a key is unknown, a value has the wrong type or is out of range, or two
    keys exclude each other; UsageError for an override that does not have the form section.key.
    """
    path = Path(path)
    try:
        text = read(path).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8; save it as that") from None
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOML errors, and numbers or nesting that Python refuses
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigError(f"{path} is not valid TOML: {error}{_advice(text, int(line[1]) if line else 0)}") from None
    if recorded:
        overrides = [(key, of_earlier(text) if key == "model.name" else text) for key, text in overrides]
        if isinstance(model := raw.get("model"), dict) and isinstance(name := model.get("name"), str):
            model["name"] = of_earlier(name)
    source = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
    return resolve(raw, overrides, stem=path.stem, source=source)


def resolve(
    raw: Mapping[str, Any], overrides: Iterable[tuple[str, str]] = (), *, stem: str = "run", source: str = "file"
) -> Config:
    """As `load`, from a parsed tree {section: {key: value}}."""
    given: dict[str, dict[str, tuple[Any, str]]] = {}
    for name, keys in raw.items():
        if not isinstance(keys, Mapping):
            raise ConfigError(f"{name} = {keys!r} stands outside of a section; write it below [section]")
        given[name] = {key: (value, source) for key, value in keys.items()}
    for name, text in overrides:
        section, dot, key = name.partition(".")
        if not dot:
            raise UsageError(f"--{name} is no option; overrides have the form --section.key VALUE")
        given.setdefault(section, {})[key] = (text, _COMMAND_LINE)

    name, origin = given.get("method", {}).get("name", ("penalty", ""))
    if origin is _COMMAND_LINE:
        name = options_of(MethodSection)[0].read(name)
    tree = option_tree(str(name))
    if origin is _COMMAND_LINE:  # the file is about another method
        theirs = option_tree(str(raw.get("method", {}).get("name", "penalty")))["method"]
        given["method"] = {
            key: value
            for key, value in given["method"].items()
            if key in tree["method"] or key not in theirs or value[1] is _COMMAND_LINE
        }
    for section in given:
        if section not in tree:
            hint = other_section(section, given[section], tree) or nearest(section, tree)
            raise ConfigError(f"unknown section [{section}]{hint or '; there are ' + ', '.join(tree)}")

    origins: dict[str, str] = {}
    built: dict[str, Any] = {}
    for section, options in tree.items():
        values = {}
        for key in given.get(section, {}):
            if key not in options:
                synonym = meant(section, key, tree)
                hint = f"; did you mean {synonym}?" if synonym else _hint(section, key, options)
                raise ConfigError(f"unknown key {section}.{key}{hint}")
        for key, opt in options.items():
            value, origin = given.get(section, {}).get(key, (opt.default, "default"))
            value = opt.read(value) if origin is _COMMAND_LINE else value
            values[key] = opt.accept(value, f"{section}.{key}")
            origins[f"{section}.{key}"] = origin
        if section == "method":
            values["options"] = {k: values.pop(k) for k in list(values) if k not in ("name", "frozen")}
        built[section] = SECTIONS[section](**values)
    config = Config(**built, stem=stem, origins=origins)
    check_combination(config, declared_methods()[config.method.name])
    return config


def tables(toml: str) -> dict[str, Any]:
    """The sections of a configuration as somebody else's checkpoint has it; none where that is no TOML."""
    try:
        found = {name: keys for name, keys in tomllib.loads(toml).items() if isinstance(keys, dict)}
    except (ValueError, RecursionError):
        return {}
    if isinstance(name := found.get("model", {}).get("name"), str):
        found["model"]["name"] = of_earlier(name)
    return found


def _advice(text: str, line: int) -> str:
    """What to write where TOML refuses a value that people write."""
    lines = text.splitlines()
    result = re.match(r"\s*[\w.\"'-]+\s*=\s*([^\s#]+)", lines[line - 1]) if 0 < line <= len(lines) else None
    if not result:
        return ""
    value = result[1]
    if value.lower() in ("true", "false"):
        return f"; write {value.lower()} for {value}"
    if re.fullmatch(r"[+-]?\d+,\d+", value):
        return f"; write {value.replace(',', '.')} for {value}"
    if (number := number_in(value)) is not None:
        return f"; write {show(number)} for {value}"
    return f'; a text stands in quotes: "{value}"' if re.match(r"[^\W\d]|[~$/.]", value) else ""


def _hint(section: str, key: str, options: Mapping[str, Option]) -> str:
    if near := nearest(key, options):
        return near.replace("mean ", f"mean {section}.")
    if section == "method":
        owners = [m.name for m in declared_methods().values() if key in {o.name for o in m.options}]
        if owners:
            listed = " and ".join(filter(None, (", ".join(owners[:-1]), owners[-1])))
            return f"; it belongs to {listed}"
    tree = {name: {o.name for o in options_of(section)} for name, section in SECTIONS.items() if name != "method"}
    homes = [f"{name}.{key}" for name, keys in tree.items() if key in keys]
    return f"; did you mean {homes[0]}?" if homes else f"; [{section}] has {', '.join(options)}"
