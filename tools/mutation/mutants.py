"""Which code is changed, in rooms, and which tests may notice: those that need no launcher and take seconds.

A file has a mutant for every place where one comparison, sum, constant, condition, call or statement can be changed.

Left alone are what no number depends on (docstrings, annotations, decorators, texts, the content of `raise` and
`assert`) and the defaults and limits in `option(…)`, which are a matter of choice.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from pathlib import Path

# Of each room its code, and the tests beside its own that are tried.
ROOMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "terms": ("hpcsplit/terms", ("tests/methods",)),
    "methods": ("hpcsplit/methods", ("tests/plan/test_stages.py", "tests/plan/test_planned_bytes.py", "tests/engine")),
    "store": ("hpcsplit/store", ("tests/files/test_durable.py", "tests/engine")),
    "stage": ("hpcsplit/stage", ("tests/plan/test_prepare.py", "tests/plan/simulate", "tests/methods", "tests/engine")),
    "blocks": ("hpcsplit/plan/blocks.py", ("tests/plan/test_prepare.py",)),
    "forecast": ("hpcsplit/plan/forecast.py", ("tests/plan/test_prepare.py",)),
    "checkpoint": ("hpcsplit/checkpoint", ("tests/files/test_durable.py", "tests/run/test_planted.py")),
    "schedule": ("hpcsplit/schedule", ("tests/engine",)),
    "wire": ("hpcsplit/wire", ()),
    "records": ("hpcsplit/run/records.py", ("tests/files/test_durable.py",)),
    "engine": ("hpcsplit/engine", ("tests/checkpoint",)),
}
# Files that only other processes pass through, and the tests that start those.
LAUNCHED = {
    "hpcsplit/wire/mpi.py": ("tests/wire/test_mpi.py",),
    "hpcsplit/wire/message.py": ("tests/wire/test_mpi.py",),
    "hpcsplit/host/launchers.py": ("tests/host/test_launchers.py",),
}
LAUNCHED_TESTS = tuple(test for tests in LAUNCHED.values() for test in tests)
SLOW = ("tests/engine/test_compile.py",)  # asks torch's compiler, not the rooms

_CHANGES: dict[str, dict[type[ast.AST], tuple[str, str]]] = {  # a pattern that finds it, and what takes its place
    "comparison": {
        ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
        ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: (r"is\s+not", "is"),
        ast.In: ("in", "not in"), ast.NotIn: (r"not\s+in", "in"),
    },
    "arithmetic": {
        ast.Add: (r"\+", "-"), ast.Sub: ("-", "+"), ast.Mult: (r"\*", "/"), ast.Div: ("/", "*"),
        ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.Pow: (r"\*\*", "*"),
    },
    "boolean": {ast.And: ("and", "or"), ast.Or: ("or", "and")},
}  # fmt: skip
_OPERATORS = {operator: (kind, *change) for kind, changes in _CHANGES.items() for operator, change in changes.items()}
_Edit = tuple[str, int, int, str, ast.stmt]  # kind; the bytes from here to there become this; in which statement
_NEVER_SWAPPED = ("isinstance", "issubclass", "getattr", "setattr", "hasattr")  # nothing but a TypeError


def modules(root: Path, room: str) -> list[str]:
    """The files of a room, from the root of the tree."""
    place = root / ROOMS[room][0]
    return sorted(str(path.relative_to(root)) for path in (place.rglob("*.py") if place.is_dir() else [place]))


def own(room: str) -> str:
    """Where a room's own tests are."""
    place = Path("tests", *Path(ROOMS[room][0]).parts[1:])
    return str(place.with_name(f"test_{place.name}")) if place.suffix else f"{place}/"


def files_of_tests(root: Path, room: str, near: bool) -> list[str]:
    """The files of the tests that are tried in this process, from the root of the tree; `near`: the room's own."""
    found: set[str] = set()
    for place in (own(room), *(() if near else ROOMS[room][1])):
        paths = [root / place] if place.endswith(".py") else (root / place).rglob("test_*.py")
        found |= {str(path.relative_to(root)) for path in paths if path.exists()}
    return sorted(found.difference(LAUNCHED_TESTS, SLOW))


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the bytes from `start` to `end` become `text`."""

    room: str
    path: str
    kind: str
    line: int
    start: int
    end: int
    text: str
    before: str
    after: str
    lines: tuple[int, int]  # of the statement: who passes here may notice
    imported: bool  # the statement is not inside a function, so it is done when the module is imported
    id: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.id} {self.path}:{self.line} {self.kind}\n    - {self.before}\n    + {self.after}"


def drawn(root: Path, room: str, seed: int, count: int | None) -> list[Mutant]:
    """So many mutants of a room, the same for the same seed; a change of one file moves no other file's mutants."""
    sources = {path: (root / path).read_bytes() for path in modules(root, room)}
    found = [mutant for path, source in sources.items() for mutant in mutants(room, path, source)]
    found.sort(key=lambda mutant: hashlib.sha256(f"{seed} {mutant.id}".encode()).digest())
    others = (mutant for mutant in found if _is_another_program(sources[mutant.path], mutant))
    return list(islice(others, count)) if count is not None else found


def _is_another_program(source: bytes, mutant: Mutant) -> bool:
    try:
        return ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def mutants(room: str, path: str, source: bytes) -> list[Mutant]:
    """Every mutant of a file; `id` is made of the change alone."""
    tree, seen, found = ast.parse(source), Counter[str](), []
    bodies = [part for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for part in node.body]
    inside = {node for part in bodies for node in ast.walk(part)}
    for kind, start, stop, text, statement in _Finder(source, tree).edits():
        before = _lines(source, start, stop)
        after = _lines(source[:start] + text.encode() + source[stop:], start, start + len(text.encode()))
        seen[change := f"{before} {after}"] += 1
        first, last = (source.count(b"\n", 0, place) + 1 for place in (start, stop))
        end = statement.end_lineno or statement.lineno
        if isinstance(statement, ast.If | ast.For | ast.While | ast.With | ast.FunctionDef):
            end = max(statement.lineno, last)  # its head alone
        name = hashlib.sha256(f"{path} {change} {seen[change]}".encode()).hexdigest()[:8]
        lines, imported = (statement.lineno, end), statement not in inside
        found.append(Mutant(room, path, kind, first, start, stop, text, before, after, lines, imported, name))
    return found


def _lines(source: bytes, start: int, end: int) -> str:
    """The lines from one place to another as one line of text."""
    first, last = source.rfind(b"\n", 0, start) + 1, source.find(b"\n", end)
    return " ".join(source[first : last if last >= 0 else None].decode().split())


class _Finder:
    def __init__(self, source: bytes, tree: ast.Module) -> None:
        self.source, self.tree = source, tree
        self.starts = list(accumulate(map(len, source.splitlines(keepends=True)), initial=0))

    def edits(self) -> Iterator[_Edit]:
        for statement in self.tree.body:
            yield from self._statement(statement)

    def _statement(self, node: ast.stmt) -> Iterator[_Edit]:
        if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if _can_be_dropped(node):
            yield self._edit("drop", node, "pass", node)
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return
        if isinstance(node, ast.AugAssign):
            yield from self._between(node.target, node.op, node.value, node, "=")
        if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
            yield self._edit("return", node.value, "None", node)
        if isinstance(node, ast.If):
            yield self._edit("condition", node.test, f"not ({self._text(node.test)})", node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "decorator_list", "returns", "bases", "keywords", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt):
                    yield from self._statement(child)
                elif isinstance(child, ast.ExceptHandler | ast.match_case):
                    for inner in child.body:
                        yield from self._statement(inner)
                elif isinstance(child, ast.AST):
                    yield from self._expression(child, node)

    def _expression(self, node: ast.AST, statement: ast.stmt) -> Iterator[_Edit]:
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "option"):
            return
        if isinstance(node, ast.arguments):
            for default in (*node.defaults, *node.kw_defaults):
                if default is not None:
                    yield from self._expression(default, statement)
            return
        for left, op, right in _operations(node):
            yield from self._between(left, op, right, statement)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield self._edit("sign", node, f"({self._text(node.operand)})", statement)
        elif isinstance(node, ast.IfExp):
            yield self._edit("condition", node.test, f"(not ({self._text(node.test)}))", statement)
        elif isinstance(node, ast.Constant):
            if (changed := _other(node.value)) is not None:
                yield self._edit("constant", node, changed, statement)
        elif isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func) not in _NEVER_SWAPPED:
            first, second = node.args[:2]
            if not any(isinstance(each, ast.Starred) for each in (first, second)):
                start, end = self._place(first)[0], self._place(second)[1]
                gap = self.source[self._place(first)[1] : self._place(second)[0]].decode()
                yield "swap", start, end, self._text(second) + gap + self._text(first), statement
        for name, child in ast.iter_fields(node):
            if name == "annotation":
                continue
            for each in child if isinstance(child, list) else [child]:
                if isinstance(each, ast.AST):
                    yield from self._expression(each, statement)

    def _between(
        self, left: ast.AST, op: ast.AST, right: ast.AST, statement: ast.stmt, ending: str = ""
    ) -> Iterator[_Edit]:
        """Another operator between two operands."""
        kind, pattern, text = _OPERATORS.get(type(op), ("", "", ""))
        start, end = self._place(left)[1], self._place(right)[0]
        if kind and (found := re.search(f"{pattern}{ending}".encode(), self.source[start:end])):
            yield kind, start + found.start(), start + found.end(), text + ending, statement

    def _edit(self, kind: str, node: ast.AST, text: str, statement: ast.stmt) -> _Edit:
        return kind, *self._place(node), text, statement

    def _place(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,  # type: ignore[attr-defined]
            self.starts[node.end_lineno - 1] + node.end_col_offset,  # type: ignore[attr-defined]
        )

    def _text(self, node: ast.AST) -> str:
        start, end = self._place(node)
        return self.source[start:end].decode()


def _operations(node: ast.AST) -> Iterator[tuple[ast.expr, ast.AST, ast.expr]]:
    """What stands left of each operator, it, and what stands right of it."""
    if isinstance(node, ast.Compare):
        yield from zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
    elif isinstance(node, ast.BoolOp):
        yield from ((left, node.op, right) for left, right in pairwise(node.values))
    elif isinstance(node, ast.BinOp):
        yield node.left, node.op, node.right


def _can_be_dropped(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.AugAssign | ast.Delete | ast.Raise)


def _other(value: object) -> str | None:
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int):
        return str(value + 1)
    return repr(2 * value if value else 1.0) if isinstance(value, float) else None


def equivalents(path: Path) -> dict[str, str]:
    """The mutants that are the same program after all, and why: a line each, its id first."""
    lines = [line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")]
    return {name: reason.strip() for name, _, reason in lines}
