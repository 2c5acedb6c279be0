"""The mutants of a file: every place where one comparison, sum, constant, condition, call or statement can be changed.

Left alone are what no number depends on (docstrings, annotations, decorators, texts, the content of `raise` and
`assert`) and the defaults and limits in `option(…)`, which are a matter of choice.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tools.mutation.rooms import modules

_COMPARED = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: (r"not\s+in", "in"),
}  # fmt: skip
_COMPUTED = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"),
}  # fmt: skip


_NEVER_SWAPPED = ("isinstance", "issubclass", "getattr", "setattr", "hasattr")  # nothing but a TypeError


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


@dataclass(frozen=True)
class _Edit:
    kind: str
    start: int
    end: int
    text: str
    statement: ast.stmt


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
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for part in function.body for node in ast.walk(part)}
    for edit in _Finder(source, tree).edits():
        changed = source[: edit.start] + edit.text.encode() + source[edit.end :]
        before, after = (
            _lines(source, edit.start, edit.end),
            _lines(changed, edit.start, edit.start + len(edit.text.encode())),
        )
        seen[f"{before} {after}"] += 1
        name = f"{path} {before} {after} {seen[f'{before} {after}']}"
        end = edit.statement.end_lineno or edit.statement.lineno
        if isinstance(edit.statement, ast.If | ast.For | ast.While | ast.With | ast.FunctionDef):
            end = max(edit.statement.lineno, source.count(b"\n", 0, edit.end) + 1)  # its head alone
        found.append(
            Mutant(
                room, path, edit.kind, source.count(b"\n", 0, edit.start) + 1, edit.start, edit.end, edit.text,
                before, after, (edit.statement.lineno, end), id(edit.statement) not in inside,
                hashlib.sha256(name.encode()).hexdigest()[:8],
            )
        )  # fmt: skip
    return found


def _lines(source: bytes, start: int, end: int) -> str:
    """The lines from one place to another as one line of text."""
    first, last = source.rfind(b"\n", 0, start) + 1, source.find(b"\n", end)
    return " ".join(source[first : last if last >= 0 else None].decode().split())


class _Finder:
    def __init__(self, source: bytes, tree: ast.Module) -> None:
        self.source, self.tree = source, tree
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

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
        if isinstance(node, ast.AugAssign) and type(node.op) in _COMPUTED:
            old, new = _COMPUTED[type(node.op)]
            yield from self._between(node.target, node.value, re.escape(old) + "=", new + "=", "arithmetic", node)
        if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
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
        if isinstance(node, ast.Compare):
            for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                old, new = _COMPARED[type(op)]
                yield from self._between(left, right, old, new, "comparison", statement)
        elif isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
            old, new = _COMPUTED[type(node.op)]
            yield from self._between(node.left, node.right, re.escape(old), new, "arithmetic", statement)
        elif isinstance(node, ast.BoolOp):
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield from self._between(left, right, old, new, "boolean", statement)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
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
                yield _Edit("swap", start, end, self._text(second) + gap + self._text(first), statement)
        for name, child in ast.iter_fields(node):
            if name == "annotation":
                continue
            for each in child if isinstance(child, list) else [child]:
                if isinstance(each, ast.AST):
                    yield from self._expression(each, statement)

    def _between(
        self, left: ast.AST, right: ast.AST, old: str, new: str, kind: str, statement: ast.stmt
    ) -> Iterator[_Edit]:
        start, end = self._place(left)[1], self._place(right)[0]
        if found := re.search(old.encode(), self.source[start:end]):
            yield _Edit(kind, start + found.start(), start + found.end(), new, statement)

    def _edit(self, kind: str, node: ast.AST, text: str, statement: ast.stmt) -> _Edit:
        return _Edit(kind, *self._place(node), text, statement)

    def _place(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,  # type: ignore[attr-defined]
            self.starts[node.end_lineno - 1] + node.end_col_offset,  # type: ignore[attr-defined]
        )

    def _text(self, node: ast.AST) -> str:
        start, end = self._place(node)
        return self.source[start:end].decode()


def _can_be_dropped(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.AugAssign | ast.Delete | ast.Raise)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _other(value: object) -> str | None:
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int):
        return str(value + 1)
    if isinstance(value, float):
        return repr(2 * value if value else 1.0)
    return None


def equivalents(path: Path) -> dict[str, str]:
    """The mutants that are the same program after all, and why: a line each, its id first."""
    lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    return {line.split()[0]: line.partition(" ")[2].strip() for line in lines if line.strip() and line[0] != "#"}
