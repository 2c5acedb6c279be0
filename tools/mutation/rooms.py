"""Which code is changed, and which tests may notice: those that need no launcher and take seconds."""

from __future__ import annotations

from pathlib import Path

# Of each room its code, and the tests beside its own (tests/ROOM, or tests/test_ROOM.py) that are tried.
ROOMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "terms": ("hpcsplit/terms", ("tests/methods",)),
    "methods": ("hpcsplit/methods", ("tests/test_planner.py", "tests/test_planned_bytes.py", "tests/engine")),
    "boundary": ("hpcsplit/boundary", ("tests/files/test_durable.py", "tests/engine")),
    "split": (
        "hpcsplit/split",
        ("tests/test_forecast.py", "tests/test_prepare.py", "tests/simulator", "tests/methods", "tests/engine"),
    ),
    "checkpoint": ("hpcsplit/checkpoint", ("tests/files/test_durable.py", "tests/rundir/test_planted.py")),
    "schedule": ("hpcsplit/schedule", ("tests/engine",)),
    "wire": ("hpcsplit/wire", ()),
    "records": ("hpcsplit/records.py", ("tests/files/test_durable.py",)),
    "engine": ("hpcsplit/engine", ("tests/checkpoint",)),
}
# Files that only other processes pass through, and the tests that start those.
LAUNCHED = {
    "hpcsplit/wire/mpi.py": ("tests/wire/test_mpi.py",),
    "hpcsplit/wire/message.py": ("tests/wire/test_mpi.py",),
    "hpcsplit/wire/launcher.py": ("tests/wire/test_launcher.py",),
}
LAUNCHED_TESTS = tuple(test for tests in LAUNCHED.values() for test in tests)
SLOW = ("tests/engine/test_compile.py",)  # asks torch's compiler, not the rooms


def modules(root: Path, room: str) -> list[str]:
    """The files of a room, from the root of the tree."""
    place = root / ROOMS[room][0]
    return sorted(str(path.relative_to(root)) for path in (place.rglob("*.py") if place.is_dir() else [place]))


def own(room: str) -> str:
    """Where a room's own tests are."""
    return f"tests/test_{room}.py" if ROOMS[room][0].endswith(".py") else f"tests/{room}/"


def files_of_tests(root: Path, room: str, near: bool) -> list[str]:
    """The files of the tests that are tried in this process, from the root of the tree; `near`: the room's own."""
    found: set[str] = set()
    for place in (own(room), *(() if near else ROOMS[room][1])):
        paths = [root / place] if place.endswith(".py") else (root / place).rglob("test_*.py")
        found |= {str(path.relative_to(root)) for path in paths if path.exists()}
    return sorted(found.difference(LAUNCHED_TESTS, SLOW))
