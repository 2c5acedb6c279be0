"""What a process does that has imported what is slow, and forks for each run of pytest in its copy of the tree."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tools.mutation.mutants import Mutant
from tools.mutation.rooms import ROOMS
from tools.program import ROOT, forked, say, text

COMMON = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", "ignore")
COPIED = ("hpcsplit", "tests", "tools", "pyproject.toml", "README.md", "jobs", "docs", ".importlinter")
NO_TESTS = 5  # pytest's exit code
Lines = set[tuple[str, int]]
MEMORY = 8 << 30  # bytes that a changed program may ask for


def enter(root: Path, folder: Path) -> None:
    """Copy the tree into a place of this process in the folder, and work there from now on."""
    tree = folder / str(os.getpid()) / "tree"
    tree.mkdir(parents=True)
    for source in map(root.joinpath, COPIED):
        if source.is_dir():
            shutil.copytree(source, tree / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, tree)
    os.chdir(tree)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree), *(place for place in sys.path if Path(place or ".").resolve() != ROOT)]
    for name in ("h5py", "hypothesis", "numpy", "torchvision", "torch._dynamo"):
        import_module(name)
    import_module("torch").set_num_threads(1)


def recorded(file: str, noted: Path) -> None:
    """Note of each test in a file its seconds and the lines it passes through.  SystemExit where one fails."""
    say(f"who passes where without a change: {file}")
    draft = noted.with_suffix(".tmp")

    def run() -> int:
        recorder = Recorder(Path.cwd())
        code = pytest.main([*COMMON, "--timeout=0", file], plugins=[recorder])
        tests = {
            test: {"seconds": recorder.seconds[test], "lines": sorted(lines)} for test, lines in recorder.of.items()
        }
        draft.write_text(json.dumps(tests), encoding="utf-8")
        return int(code)

    code, said, _ = _forked(run, 3600.0)
    if code not in (0, NO_TESTS):
        raise SystemExit(f"tools/mutate: {file} fails without a change:\n{said[-2000:]}")
    draft.rename(noted)


def tried(mutant: Mutant, tests: dict[str, float]) -> dict[str, Any]:
    """What becomes of a mutant under these tests, each with its seconds without a change."""
    if not tests:
        return {"noticed": False, "late": False, "by": [], "seconds": 0.0, "tried": 0}
    path = Path(mutant.path)
    good = path.read_bytes()
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
    path.write_bytes(mutant.apply(good))
    words = [*COMMON, f"--timeout={15 + 5 * max(tests.values()):.0f}", *tests]
    try:
        code, said, seconds = _forked(lambda: int(pytest.main(words)), 60 + 4 * sum(tests.values()))
    finally:
        path.write_bytes(good)
    by = [line.split(" - ")[0] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    late = code is None or "Timeout (>" in said or "Failed: Timeout" in said
    return {"noticed": code != 0, "late": late, "by": by[:1], "seconds": round(seconds, 1), "tried": len(tests)}


def _forked(run: Callable[[], int], limit_s: float) -> tuple[int | None, str, float]:
    """The exit code (None: it took too long), the output and the seconds of what a child does."""

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tools", "hpcsplit")]:
            del sys.modules[name]  # those of the copy count from now on
        return run()

    began, said = time.monotonic(), Path.cwd().with_name("said")
    code = forked(limited, said, limit_s)
    return code, text(said) if said.exists() else "", time.monotonic() - began


class Recorder:
    """A plugin for pytest: `of` has for each test the lines (file, number) of the package that it passed through,
    `seconds` its time.  What a fixture of a session or a module does counts for every test that asks for it."""

    def __init__(self, root: Path) -> None:
        self.places = tuple(f"{root}/{place}" for place, _ in ROOMS.values())
        self.cut = len(f"{root}/")
        self.of: dict[str, Lines] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self._now: Lines = set()
        self._fixtures: dict[str, Lines] = defaultdict(set)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._now = set()
        sys.settrace(self._called)
        threading.settrace(self._called)
        yield
        sys.settrace(None)
        asked = [self._fixtures[name] for name in getattr(item, "fixturenames", ())]
        self.of[item.nodeid] = self._now.union(*asked)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        outside, self._now = self._now, set()
        yield
        if fixturedef.scope != "function":
            self._fixtures[fixturedef.argname] |= self._now
        self._now |= outside

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(self.places):
            return None
        self._passed(frame, event, arg)
        return self._passed

    def _passed(self, frame: FrameType, event: str, arg: object) -> Any:
        self._now.add((frame.f_code.co_filename[self.cut :], frame.f_lineno))
        return self._passed
