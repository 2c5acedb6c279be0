"""Whatever the file or the command line says: a configuration, or an error for the user."""

from __future__ import annotations

import contextlib
import datetime
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpcsplit.config import Config, load, option_tree, resolve
from hpcsplit.errors import ConfigError, UsageError

KNOWN = {section: list(options) for section, options in option_tree("al").items()}
PLAUSIBLE = ["al", "penalty", "backprop", "resnet20", "resnet9", "wrn-16-2", "mlp", "1:4", "0:1", "2:0", "time", "sum"]
texts = st.one_of(st.sampled_from(PLAUSIBLE), st.text(max_size=12))
scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 2, 3, 10**400, -1]),
    st.floats(),
    texts,
    st.just(datetime.date(2020, 2, 29)),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2), max_leaves=5
)
keys = st.sampled_from([(section, key) for section, names in KNOWN.items() for key in names])
strange_keys = st.tuples(st.one_of(st.sampled_from(list(KNOWN)), texts), texts)
overrides = st.lists(
    st.tuples(
        st.one_of(keys.map(".".join), strange_keys.map(".".join), texts),
        st.one_of(
            texts, st.integers().map(str), st.sampled_from(["[1, 2]", "[[", "{a = 1}", "true", "nan", "1e999", '"'])
        ),
    ),
    max_size=3,
)


@st.composite
def trees(draw: st.DrawFn) -> dict:
    """Mostly known keys with any value; sometimes strange sections."""
    tree: dict = {}
    for (section, key), value in draw(st.lists(st.tuples(keys | strange_keys, values), max_size=4)):
        tree.setdefault(section, {})[key] = value
    return tree | draw(st.dictionaries(texts, values, max_size=1))


def resolved(tree: dict, pairs: list) -> Config | None:
    with contextlib.suppress(ConfigError, UsageError):
        return resolve(tree, pairs)
    return None


@settings(max_examples=400, deadline=None)
@given(trees(), overrides)
@example({"method": {"name": ["al"]}}, [])
@example({"method": []}, [("method.name", "al")])
@example({}, [("optim.lr", "9" * 5000)])
def test_a_tree_becomes_a_configuration_or_an_error_for_the_user(tree: dict, pairs: list):
    config = resolved(tree, pairs)
    if config is not None:
        assert resolve(tomllib.loads(config.to_toml())) == config
        config.fingerprint()


@settings(max_examples=200, deadline=None)
@given(keys, values)
def test_one_key_of_any_value(key: tuple[str, str], value: object):
    section, name = key
    tree = {"method": {"name": "al"}}
    tree.setdefault(section, {})[name] = value
    config = resolved(tree, [])
    assert config is None or resolve(tomllib.loads(config.to_toml())) == config


LINES = st.one_of(
    st.sampled_from([f"[{section}]" for section in KNOWN]),
    keys.map(lambda k: f"{k[1]} = 1"),
    st.tuples(keys, texts).map(lambda pair: f"{pair[0][1]} = {pair[1]}"),
    texts,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=6), pairs=overrides)
def test_a_file_becomes_a_configuration_or_an_error_for_the_user(tmp_path: Path, lines: list[str], pairs: list):
    path = tmp_path / "fuzz.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with contextlib.suppress(ConfigError, UsageError):
        assert isinstance(load(path, pairs), Config)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40))
def test_a_file_of_any_bytes(tmp_path: Path, content: bytes):
    path = tmp_path / "fuzz.toml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        load(path)


def test_the_fuzz_reaches_configurations_that_can_be_run():
    """A guard for the tests above: their material is not all errors."""
    assert resolved({"method": {"name": "al"}, "optim": {"lr": 2}}, [("run.seed", "3")]) is not None
    with pytest.raises(ConfigError):
        resolve({"optim": {"lr": 10**400}})
