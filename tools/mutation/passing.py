"""Which tests pass through which lines: a plugin for pytest that writes it down.

What a fixture of a session or a module does counts for every test that asks for the fixture.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tools.mutation.rooms import ROOMS

Lines = set[tuple[str, int]]


class Recorder:
    """`of` has for each test the lines (file, number) of the package that it passed through, `seconds` its time."""

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
