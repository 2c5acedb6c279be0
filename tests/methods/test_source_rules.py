"""Rules of the house that a look at the source text can hold (architecture, rules 3 and 6)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpcsplit
from hpcsplit.config.declared import declared_methods

ROOT = Path(hpcsplit.__file__).parent
COMPOSITION = {ROOT / "plan" / "setting.py", ROOT / "assemble.py", ROOT / "cli.py"}
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node that runs with it: not the bodies of functions defined there."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function):
            yield from inside(child)


def yields_in_with(tree: ast.AST) -> list[int]:
    """Line numbers of yields below a `with`; a context manager's own yield is not meant."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith):
            lines |= {n.lineno for n in inside(node) if isinstance(n, ast.Yield | ast.YieldFrom)}
    return sorted(lines)


def compared_names(tree: ast.AST, names: set[str]) -> list[int]:
    """Line numbers where one of `names` is compared with something, or is a case of a match."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.match_case):
            where = node.pattern if isinstance(node, ast.match_case) else node
            lines |= {n.lineno for n in ast.walk(where) if isinstance(n, ast.Constant) and n.value in names}
    return sorted(lines)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    with a:\n        yield 1", [3]),
        ("def f():\n    with a:\n        for b in c:\n            x = yield from b", [4]),
        ("def f():\n    with a:\n        pass\n    yield 1", []),
        ("def f():\n    with a:\n        def g():\n            yield 1", []),
    ],
)
def test_the_search_for_a_yield_in_a_with_block_finds_it(source: str, lines: list[int]) -> None:
    assert yields_in_with(ast.parse(source)) == lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('a == "al"', [1]),
        ('a in ("al", "b")', [1]),
        ('match a:\n    case "al" | "b":\n        pass', [2]),
        ('a = {"al": 1}["al"]', []),
    ],
)
def test_the_search_for_a_compared_name_finds_it(source: str, lines: list[int]) -> None:
    assert compared_names(ast.parse(source), {"al"}) == lines


@pytest.mark.parametrize("room", ["methods", "engine"])
def test_no_stage_program_yields_inside_a_with_block(room: str) -> None:
    files = sorted((ROOT / room).glob("**/*.py"))
    assert files
    found = {str(f.relative_to(ROOT)): yields_in_with(ast.parse(f.read_text(encoding="utf-8"))) for f in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_no_module_outside_composition_compares_a_methods_name() -> None:
    names = set(declared_methods())
    assert names
    files = [f for f in ROOT.glob("**/*.py") if f not in COMPOSITION and ROOT / "config" not in f.parents]
    found = {str(f.relative_to(ROOT)): compared_names(ast.parse(f.read_text(encoding="utf-8")), names) for f in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_no_module_outside_methods_says_an_option_of_a_method() -> None:
    options = {option.name for method in declared_methods().values() for option in method.options}
    assert "downsample" in options
    said = {}
    for file in ROOT.glob("**/*.py"):
        if ROOT / "config" not in file.parents and ROOT / "methods" not in file.parents:
            texts = [str(n.value) for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Constant)]
            said[str(file.relative_to(ROOT))] = options & set(re.findall(r"\bmethod\.(\w+)", " ".join(texts)))
    assert {file: names for file, names in said.items() if names} == {}
