"""Files of a run directory are opened in one way (files/nofollow.py): no module opens or removes one otherwise."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpcsplit

PACKAGE = Path(hpcsplit.__file__).parent
METHODS: tuple[str, ...] = ("read_text", "read_bytes", "write_text", "write_bytes", "unlink", "rename", "mkdir")
METHODS += ("rmdir", "touch", "iterdir", "glob", "rglob", "symlink_to", "open")
OF_OS: tuple[str, ...] = ("open", "replace", "rename", "unlink", "remove", "mkdir", "makedirs", "symlink", "link")
OF_OS += ("rmdir", "listdir", "scandir", "truncate")
ELSEWHERE = {  # what opens no file of a run directory, and why
    "files/nofollow.py": "is the one way",
    "files/scratch.py": "looks for a folder on the disks of a node",
    "run/folder.py": "makes the folder itself, which the user has named",
    "host/proc.py": "/proc",
    "host/process.py": "/proc",
    "host/launchers.py": "finds mpirun",
    "report/terminal.py": "/proc, and a terminal",
    "wire/mpi.py": "/proc and /dev/shm",
    "plan/feasibility.py": "/proc and cgroups",
    "config/load.py": "the user's own configuration",
    "config/declared.py": "the program's own modules",
    "commands/simulate.py": "a profile that the user has named",
    "commands/export.py": "a new file that the user has named",
    "commands/doctor.py": "/dev/null",
    "host/terminal.py": "/dev/null",
    "nets/code.py": "the user's own modules, which run already",
}
ROOMS = ("data/", "doctor/")  # the user's data sets; folders that are tried


def other_ways(tree: ast.AST) -> Iterator[str]:
    """Calls that open, make or remove a file by its name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            if not any(word.arg == "opener" for word in node.keywords) and not isinstance(
                node.args[0], ast.Attribute | ast.Call
            ):
                yield f"open, line {node.lineno}"
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            if node.func.value.id == "os" and node.func.attr in OF_OS:
                yield f"os.{node.func.attr}, line {node.lineno}"
            elif node.func.value.id == "shutil" and node.func.attr != "copyfileobj":
                yield f"{node.func.value.id}.{node.func.attr}, line {node.lineno}"
            elif node.func.attr in METHODS:
                yield f"{node.func.attr}, line {node.lineno}"
        elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            yield f"{node.func.attr}, line {node.lineno}"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("open(path)", 1),
        ("open(path, 'rb', opener=open_file)", 0),
        ("open(self._fd, 'rb', closefd=False)", 0),
        ("path.read_text()", 1),
        ("(folder / 'a').write_text('')", 1),
        ("os.open(path, 0)", 1),
        ("shutil.rmtree(path)", 1),
        ("read_text(path)", 0),
        ("text.replace('a', 'b')", 0),
    ],
)
def test_other_ways_are_seen(source: str, count: int) -> None:
    assert len(list(other_ways(ast.parse(source)))) == count


def test_there_is_no_other_way() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in ELSEWHERE and not name.startswith(ROOMS):
            found[name] = list(other_ways(ast.parse(path.read_text())))
    assert len(found) > 80
    assert {name: ways for name, ways in found.items() if ways} == {}
