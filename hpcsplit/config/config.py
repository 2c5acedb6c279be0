"""A configuration: every key of every section with a checked value."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

from hpcsplit.config import sections as s
from hpcsplit.config.declared import declared_methods
from hpcsplit.config.option import Option, names_code, option, options_of, show
from hpcsplit.errors import ConfigError


@dataclass(frozen=True)
class MethodSection:
    """The training method; further keys are the method's own options."""

    name: str = option("penalty", "training method of the parallel epochs")
    frozen: bool = option(False, "control: no weight update in parallel epochs before the last stage")
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """A resolved configuration: every key of every section has a checked value."""

    data: s.DataSection
    model: s.ModelSection
    split: s.SplitSection
    method: MethodSection
    schedule: s.ScheduleSection
    optim: s.OptimSection
    store: s.StoreSection
    checkpoint: s.CheckpointSection
    run: s.RunSection
    stem: str = "run"
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Plain values by section and key, tuples as lists."""
        tree = {}
        for name, keys in option_tree(self.method.name).items():
            values = vars(getattr(self, name)) | (dict(self.method.options) if name == "method" else {})
            tree[name] = {key: list(values[key]) if isinstance(values[key], tuple) else values[key] for key in keys}
        return tree

    def code(self) -> dict[str, str]:
        """Which keys name functions of the user's, that run when they are used: {"model.name": "mynets:small"}."""
        tree = self.as_dict()
        return {
            f"{section}.{key}": tree[section][key]
            for section, options in option_tree(self.method.name).items()
            for key, option in options.items()
            if option.code and names_code(tree[section][key])
        }

    def with_values(self, values: Mapping[str, Any], origin: str) -> Config:
        """This configuration with other values, {"section.key": value}, that come from `origin`."""
        config = self
        for name, value in values.items():
            section, key = name.split(".")
            changed: Any = {section: replace(getattr(config, section), **{key: value})}
            config = replace(config, **changed)
        return replace(config, origins={**self.origins, **dict.fromkeys(values, origin)})

    def to_toml(self, origins: bool = True) -> str:
        """The resolved TOML text; each line ends with where its value came from."""
        lines = []
        for name, keys in self.as_dict().items():
            lines += [f"[{name}]"]
            for key, value in keys.items():
                line = f"{key} = {show(value)}"
                lines.append(f"{line:<40} # {self.origins.get(f'{name}.{key}', 'default')}" if origins else line)
            lines.append("")
        return "\n".join(lines)

    def fingerprint(self) -> dict[str, str]:
        """A short hash of each section that must not change over the life of a run."""
        tree, options, prints = self.as_dict(), option_tree(self.method.name), dict[str, str]()
        aside = {("data", "root"), ("data", "download"), ("data", "eval_train")}
        aside |= {("schedule", "deferred"), ("schedule", "waiting")}  # the same bits
        for name in ("data", "model", "method", "optim", "schedule"):
            later = {key: show(option.default) for key, option in options[name].items() if option.later}
            kept = {k: v for k, v in tree[name].items() if (name, k) not in aside and later.get(k) != show(v)}
            prints[name] = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
        return prints | {"seed": str(self.run.seed)}


SECTIONS = {name: kind for name, kind in get_type_hints(Config).items() if name not in ("stem", "origins")}


def differences(there: Mapping[str, Any], here: Mapping[str, Any], sections: Collection[str]) -> str:
    """What two configurations, by section and key, say differently in these sections of the fingerprint; or ""."""
    result = []
    for section in {**there, **here}:
        theirs, ours = there.get(section, {}), here.get(section, {})
        for key in {**theirs, **ours}:
            was, is_now = (show(keys[key]) if key in keys else "absent" for keys in (theirs, ours))
            matters = section in sections or ("seed" in sections and (section, key) == ("run", "seed"))
            if matters and was != is_now:
                result.append(f"{section}.{key} = {was} there, {is_now} here")
    return "; ".join(result)


def option_tree(method: str) -> dict[str, dict[str, Option]]:
    """Every key that a configuration with this method may have."""
    declared = declared_methods()
    if method not in declared:
        raise ConfigError(f"method.name = {method!r} is not one of {', '.join(declared)}{nearest(method, declared)}")
    tree = {name: options_of(section) for name, section in SECTIONS.items()}
    tree["method"] += declared[method].options
    return {name: {o.name: o for o in options} for name, options in tree.items()}


def nearest(word: str, known: Iterable[str]) -> str:
    """A question that names the known word most like this one, or ""."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
