"""Which code is changed, and which tests may notice: those that need no launcher and take seconds."""

from __future__ import annotations

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
