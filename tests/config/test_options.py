"""Every key of every section: its type, its limits, its default."""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcsplit.config import option_tree, resolve
from hpcsplit.config.declared import declared_methods
from hpcsplit.config.option import Option, option, options_of, show
from hpcsplit.errors import ConfigError

WRONG = {
    "bool": [1, 0, "true", 1.0, [], {}],
    "int": [True, 1.5, 1e18, "1", [1], {}],
    "float": [True, "0.1", [0.1], {}, None],
    "str": [True, 1, 1.5, ["a"], {}],
    "tuple[int, ...]": [1, "1", True, {}, [1.5], [True], ["1"], [[1]]],
    "tuple[float, ...]": [1.5, "1", True, {}, [True], ["1"], [[1]], [None]],
    "tuple[int, ...] | str": [1, 1.5, True, {}, [1.5], [True], ["1"]],
}
KEYS = [
    pytest.param(method, section, option, id=f"{method}:{section}.{name}")
    for method in declared_methods()
    for section, options in option_tree(method).items()
    for name, option in options.items()
    if section == "method" or method == "al"
]
LIMITS = [
    pytest.param(option, id=f"{section}.{name}")
    for method in ("al", "backprop")
    for section, options in option_tree(method).items()
    for name, option in options.items()
    if (option.low, option.above, option.high) != (None, None, None)
]


@pytest.mark.parametrize(("method", "section", "option"), KEYS)
def test_a_value_of_another_type_is_refused_by_its_full_name(method: str, section: str, option: Option) -> None:
    for wrong in WRONG[option.kind]:
        tree: dict[str, dict[str, object]] = {"method": {"name": method}}
        tree.setdefault(section, {})[option.name] = wrong
        with pytest.raises(ConfigError, match=rf"{section}\.{option.name}"):
            resolve(tree)


@pytest.mark.parametrize(("method", "section", "option"), KEYS)
def test_a_default_obeys_its_own_limits(method: str, section: str, option: Option) -> None:
    assert option.accept(option.default, option.name) == option.default
    assert option.doc
    assert show(option.default) in option.describe()


@pytest.mark.parametrize("option", LIMITS)
def test_the_limits_belong_to_the_range_and_the_next_number_does_not(option: Option) -> None:
    smallest = 1 if option.kind != "float" else 1e-9

    def value(number: float) -> float | list[int]:
        return [int(number)] if "tuple" in option.kind else int(number) if option.kind == "int" else number

    if option.low is not None:
        option.accept(value(option.low), "key")
        with pytest.raises(ConfigError, match="below its smallest"):
            option.accept(value(option.low - smallest), "key")
    if option.high is not None:
        option.accept(value(option.high), "key")
        with pytest.raises(ConfigError, match="above its largest"):
            option.accept(value(option.high + smallest), "key")
    if option.above is not None:
        option.accept(value(option.above + smallest), "key")
        with pytest.raises(ConfigError, match="must be greater"):
            option.accept(value(option.above), "key")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_must_be_finite(value: float) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        resolve({"optim": {"lr": value}})


@pytest.mark.parametrize("tree", [{"optim": {"lr": 10**400}}, {"run": {"seed": 2**63}}, {"split": {"cuts": [2**70]}}])
def test_a_whole_number_must_fit_into_64_bits(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="beyond the whole numbers of TOML"):
        resolve(tree)


def test_a_whole_number_is_welcome_where_a_number_is_asked_for() -> None:
    lr = resolve({"optim": {"lr": 1}}).optim.lr
    assert (lr, type(lr)) == (1.0, float)


def test_a_choice_names_the_others() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.order = 'backwards' is not one of alternate, parallel-first"):
        resolve({"schedule": {"order": "backwards"}})


@pytest.mark.parametrize(
    "text", ["", 'a "quoted" \\ path', "tab\tnew\nline\r", "\x00\x07\x7f\x85\u2028", "ψ λ 漢", "\U000e0001\U0001f600"]
)
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"value = {show(text)}")["value"] == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_random_texts_survive_toml(text: str) -> None:
    assert tomllib.loads(f"value = {show(text)}")["value"] == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_toml(number: float) -> None:
    assert tomllib.loads(f"value = {show(number)}")["value"] == number


# ------------------------------------------------------------------------------------------------ methods


@pytest.mark.parametrize("name", declared_methods())
def test_what_the_source_text_declares_is_what_the_imported_class_has(name: str) -> None:
    declared = declared_methods()[name]
    cls = getattr(importlib.import_module(declared.module), declared.class_name)
    assert vars(cls.facts).items() <= vars(declared).items()
    assert {o.name: o for o in declared.options} == {o.name: o for o in options_of(cls)}


@pytest.mark.parametrize("name", declared_methods())
def test_the_class_takes_its_declared_defaults(name: str) -> None:
    declared = declared_methods()[name]
    cls = getattr(importlib.import_module(declared.module), declared.class_name)
    defaults = {o.name: o.default for o in declared.options}
    assert cls(**defaults) == cls()
    in_class = {f.name: f.default for f in dataclasses.fields(cls) if "doc" in f.metadata}
    assert in_class == defaults


def test_the_methods_are_known_by_the_names_that_users_write() -> None:
    assert {"backprop", "penalty", "al"} <= set(declared_methods())
    assert not declared_methods()["backprop"].parallel
    assert declared_methods()["al"].parallel


def test_a_word_that_no_option_has_is_an_error() -> None:
    @dataclasses.dataclass(frozen=True)
    class Section:
        width: int = option(1, "of something", lowest=1)

    with pytest.raises(TypeError, match="lowest"):
        options_of(Section)
