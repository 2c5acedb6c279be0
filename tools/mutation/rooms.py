"""Which code is changed, and which tests may notice: those that need no launcher and take seconds."""

from __future__ import annotations

from pathlib import Path

ROOMS = {
    "terms": ("hpcsplit/terms",),
    "methods": ("hpcsplit/methods",),
    "boundary": ("hpcsplit/boundary",),
    "split": ("hpcsplit/split",),
    "checkpoint": ("hpcsplit/checkpoint",),
    "schedule": ("hpcsplit/schedule",),
    "wire": ("hpcsplit/wire",),
    "records": ("hpcsplit/records.py",),
    "engine": ("hpcsplit/engine",),
}
TESTS = (
    "tests/terms",
    "tests/split",
    "tests/schedule",
    "tests/wire/test_lockstep.py",
    "tests/wire/test_launcher.py",
    "tests/boundary",
    "tests/methods",
    "tests/engine",
    "tests/checkpoint",
    "tests/files",
    "tests/report",
    "tests/test_records.py",
    "tests/test_stopping.py",
    "tests/test_joins.py",
)
LAUNCHED = {"hpcsplit/wire/mpi.py": ("tests/wire/test_mpi.py",)}  # where only other processes pass


def modules(root: Path, room: str) -> list[str]:
    """The files of a room, from the root of the tree."""
    found = [
        path
        for place in ROOMS[room]
        for path in ((root / place).rglob("*.py") if (root / place).is_dir() else [root / place])
    ]
    return sorted(str(path.relative_to(root)) for path in found)


def near(room: str, test: str) -> bool:
    """Whether a test is of the room itself."""
    return test.startswith((f"tests/{room}/", f"tests/test_{room}."))
