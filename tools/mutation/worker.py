"""A process that has imported what is slow, and forks for each run of pytest: python -m tools.mutation.worker TREE.

It reads one JSON object a line and answers with one: {"record": FILE, "tests": […]} notes who passes where,
{"path": …, "source": …, "tests": […], "limit_s": …, "each_s": …} runs the tests with the file changed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import h5py  # noqa: F401
import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import torch
import torch._dynamo
import torchvision  # noqa: F401

from tools.mutation.rooms import ROOMS
from tools.program import forked, text

COMMON = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", "ignore")
Lines = set[tuple[str, int]]
MEMORY = 8 << 30  # bytes that a changed program may ask for


def main() -> None:
    tree = Path(sys.argv[1])
    os.chdir(tree)
    sys.dont_write_bytecode = True
    sys.path[:] = [
        str(tree),
        *(place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parents[2]),
    ]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tools", "hpcsplit")]:
        del sys.modules[name]  # those of the copy count from now on
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _recorded(tree, asked) if "record" in asked else _tried(tree, asked)
        print(json.dumps(answer), file=answers, flush=True)


def _recorded(tree: Path, asked: dict[str, Any]) -> dict[str, Any]:
    def run() -> int:
        recorder = Recorder(tree)
        code = pytest.main([*COMMON, "--timeout=0", *asked["tests"]], plugins=[recorder])
        tests = {
            test: {"seconds": recorder.seconds[test], "lines": sorted(lines)} for test, lines in recorder.of.items()
        }
        Path(asked["record"]).write_text(json.dumps(tests), encoding="utf-8")
        return int(code)

    code, said, _ = _forked(tree, run, 3600.0)
    return {"code": code, "said": said[-2000:]}


def _tried(tree: Path, asked: dict[str, Any]) -> dict[str, Any]:
    path = tree / asked["path"]
    good = path.read_bytes()
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
    path.write_text(asked["source"], encoding="utf-8")
    try:
        words = [*COMMON, f"--timeout={asked['each_s']:.0f}", *asked["tests"]]
        code, said, seconds = _forked(tree, lambda: int(pytest.main(words)), asked["limit_s"])
    finally:
        path.write_bytes(good)
    noticed = [line.split(" - ")[0] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    late = code is None or "Timeout (>" in said or "Failed: Timeout" in said
    return {"code": code, "late": late, "by": noticed[:1], "seconds": round(seconds, 1)}


def _forked(tree: Path, run: Callable[[], int], limit_s: float) -> tuple[int | None, str, float]:
    """The exit code (None: it took too long), the output and the seconds of what a child does."""

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        return run()

    began, said = time.monotonic(), tree.parent / f"said-{os.getpid()}"
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


if __name__ == "__main__":
    main()
