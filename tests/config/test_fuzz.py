"""Whatever the file or the command line says: a configuration, or a sentence for the user and exit 64 or 65.

2,000 examples in all, a tenth of them unless HPCSPLIT_FUZZ says otherwise (tests/fuzz.py).
"""

from __future__ import annotations

import contextlib
import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpcsplit import cli
from hpcsplit.config import Config, load, option_tree, resolve
from hpcsplit.errors import ConfigError, UsageError
from tests.fuzz import examples

DONE, USAGE, CONFIG = 0, 64, 65
LIMIT = datetime.timedelta(seconds=20)  # an example takes milliseconds; on a busy machine more, but it does not hang


def fuzz(whole: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples(whole), deadline=LIMIT, suppress_health_check=checks)


KNOWN = {section: list(options) for section, options in option_tree("al").items()}
PLAUSIBLE = ["al", "penalty", "backprop", "resnet20", "resnet9", "wrn-16-2", "mlp", "1:4", "0:1", "2:0", "time", "sum"]
PLAUSIBLE += [
    "pdadmm",
    "gsadmm",
    "a.b:c",
    "999999:999999",
    "resnet99998",
    "scratch",
    "$HOME",
    "~",
    "cuda",
    "/",
    "../..",
]
HUGE = [0, 1, 2, 3, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400]
WORDS = [
    "[1, 2]",
    "[[",
    "{a = 1}",
    "true",
    "nan",
    "-inf",
    "1e999",
    '"',
    "9" * 5000,
    "[" * 500,
    "{a=" * 200,
    "0x",
    "1_0",
]
texts = st.one_of(st.sampled_from(PLAUSIBLE), st.text(max_size=12))
scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.sampled_from(HUGE),
    st.floats(),
    texts,
    st.sampled_from([datetime.date(2020, 2, 29), datetime.time(23, 59), datetime.datetime(2020, 1, 1)]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2), max_leaves=5
)
keys = st.sampled_from([(section, key) for section, names in KNOWN.items() for key in names])
strange_keys = st.tuples(st.one_of(st.sampled_from(list(KNOWN)), texts), texts)
names = st.one_of(keys.map(".".join), strange_keys.map(".".join), texts)
overrides = st.lists(
    st.tuples(names, st.one_of(texts, st.integers().map(str), st.sampled_from(WORDS))),
    max_size=3,
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly known keys with any value; sometimes strange sections."""
    tree: dict[str, Any] = {}
    for (section, key), value in draw(st.lists(st.tuples(keys | strange_keys, values), max_size=4)):
        tree.setdefault(section, {})[key] = value
    return tree | draw(st.dictionaries(texts, values, max_size=1))


def resolved(tree: dict[str, Any], pairs: list[tuple[str, str]]) -> Config | None:
    with contextlib.suppress(ConfigError, UsageError):
        return resolve(tree, pairs)
    return None


def loaded(path: Path, pairs: list[tuple[str, str]]) -> Config | None:
    with contextlib.suppress(ConfigError, UsageError):
        return load(path, pairs)
    return None


def is_read_back(config: Config | None) -> bool:
    return config is None or resolve(tomllib.loads(config.to_toml()), stem=config.stem) == config


@fuzz(400)
@given(trees(), overrides)
@example({"method": {"name": ["al"]}}, [])
@example({"method": []}, [("method.name", "al")])
@example({}, [("optim.lr", "9" * 5000)])
def test_a_tree_becomes_a_configuration_or_an_error_for_the_user(
    tree: dict[str, Any], pairs: list[tuple[str, str]]
) -> None:
    config = resolved(tree, pairs)
    assert is_read_back(config)
    if config is not None:
        config.fingerprint()


@fuzz(600)
@given(keys, values)
def test_one_key_of_any_value(key: tuple[str, str], value: object) -> None:
    section, name = key
    tree: dict[str, dict[str, object]] = {"method": {"name": "al"}}
    tree.setdefault(section, {})[name] = value
    assert is_read_back(resolved(tree, []))


LINES = st.one_of(
    st.sampled_from([f"[{section}]" for section in KNOWN]),
    keys.map(lambda k: f"{k[1]} = 1"),
    st.tuples(keys, texts).map(lambda pair: f"{pair[0][1]} = {pair[1]}"),
    st.tuples(keys, st.sampled_from(WORDS)).map(lambda pair: f"{pair[0][1]} = {pair[1]}"),
    keys.map(lambda k: f"{k[0]}.{k[1]} = 1"),
    texts,
)


@fuzz(300)
@given(lines=st.lists(LINES, max_size=6), pairs=overrides)
def test_a_file_of_lines(tmp_path: Path, lines: list[str], pairs: list[tuple[str, str]]) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert is_read_back(loaded(path, pairs))


@fuzz(150)
@given(content=st.binary(max_size=60))
def test_a_file_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_bytes(content)
    assert is_read_back(loaded(path, []))


JOBS = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "jobs").glob("*.toml"))]


@st.composite
def edited_files(draw: st.DrawFn) -> bytes:
    """A real configuration with pieces cut out, doubled, exchanged or overwritten."""
    content = draw(st.sampled_from(JOBS))
    for _ in range(draw(st.integers(1, 4))):
        a, b = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        b = min(b, a + draw(st.sampled_from([0, 1, 8, 200])))
        new = draw(
            st.one_of(
                st.just(b""),
                st.just(content[a:b] * 2),
                st.binary(max_size=4),
                st.sampled_from([str(n)[:5000] for n in HUGE] + WORDS).map(str.encode),
            )
        )
        content = content[:a] + new + content[b:]
    return content


@fuzz(300)
@given(content=edited_files())
def test_a_real_file_with_mistakes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.toml"
    path.write_bytes(content)
    assert is_read_back(loaded(path, []))


# what the operating system can pass: no NUL, and single bytes that are not UTF-8 as surrogates
ARGUMENTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
ARGUMENTS |= st.sampled_from(
    ["", "-", "--", "--json", "--out", "--ranks", "-1", "x" * 300, "\udcff", "--out=/", "--config"]
)
words = st.lists(
    st.one_of(
        ARGUMENTS, names.map(lambda name: f"--{name}"), st.sampled_from(WORDS), keys.map(lambda k: f"--{k[0]}.{k[1]}=1")
    ),
    max_size=5,
).map(lambda found: [word.replace("\0", "") for word in found])


@fuzz(250)
@given(command=st.sampled_from(["config", "report", "evaluate", "export", ""]) | ARGUMENTS, given_words=words)
@example("config", ["{file}", "--optim.lr", "9" * 5000])
@example("evaluate", ["x" * 300])
@example("export", ["x" * 300, "--out", "y" * 300])
def test_a_command_line_of_any_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, given_words: list[str]
) -> None:
    file = tmp_path / "good.toml"
    file.write_text("[optim]\nlr = 0.5\n")
    place = [str(file)] if command == "config" else []
    capsys.readouterr()
    try:
        code = cli.main([command, *place, *(word.replace("{file}", str(file)) for word in given_words)])
    except SystemExit as end:  # --help and --version
        code = int(end.code or 0)
    said = capsys.readouterr()
    assert code in (DONE, USAGE, CONFIG), said.err
    assert code == DONE or said.err.startswith("hpcsplit: "), said.err
    assert "Traceback" not in said.err


def test_the_fuzz_reaches_configurations_that_can_be_run() -> None:
    """A guard for the tests above: their material is not all errors."""
    assert resolve({"method": {"name": "al"}, "optim": {"lr": 2}}, [("run.seed", "3")]) is not None
    assert all(resolve(tomllib.loads(content.decode())) for content in JOBS)
    with pytest.raises(ConfigError):
        resolve({"optim": {"lr": 10**400}})
