"""Mutants are tried in copies of the tree, by several processes; what is known is kept and not tried again."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any
from unittest.mock import patch

import pytest

from tools.mutation.mutants import LAUNCHED, LAUNCHED_TESTS, ROOMS, Mutant, files_of_tests, own
from tools.program import MARK, ROOT, Journal, content, digest, forked, kill, marked, say, text

BUDGET_S = 60.0  # of tests that are tried on one mutant, the room's own and the quickest first
COMMON = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", "ignore")
COPIED = ("hpcsplit", "tests", "tools", "pyproject.toml", "README.md", "jobs", "docs", ".importlinter")
NO_TESTS = 5  # pytest's exit code
Lines = set[tuple[str, int]]
MEMORY = 8 << 30  # bytes that a changed program may ask for


@contextmanager
def workers(root: Path, count: int) -> Iterator[ProcessPoolExecutor]:
    """So many, with copies of the tree in a temporary folder that is removed with them."""
    with (
        TemporaryDirectory(prefix="hpcsplit-mutate-") as folder,
        ProcessPoolExecutor(count, get_context("spawn"), enter, (root, Path(folder))) as pool,
        patch.dict(os.environ, {MARK: folder}),  # of the workers, which are not started yet
    ):
        try:
            yield pool
        except BaseException:
            kill(marked(folder))
            raise


def who_passes(
    root: Path, out: Path, files: Sequence[str], pool: ProcessPoolExecutor
) -> tuple[dict[str, float], dict[str, dict[int, list[str]]]]:
    """The seconds of each test in the files, and the tests that pass through each line of each file of the code, from a
    run without a change.

    What is known of a file of tests is kept until it, or the code, has changed.

    Raises:
        SystemExit: a test fails on the code as it is.
    """
    code, folder = content(root, "hpcsplit"), out / "passing"
    folder.mkdir(exist_ok=True)
    noted_in = {file: folder / f"{code}-{digest((root / file).read_bytes())}-{Path(file).stem}.json" for file in files}
    unknown = {file: noted for file, noted in noted_in.items() if not noted.exists()}
    list(pool.map(recorded, unknown.keys(), unknown.values()))
    seconds: dict[str, float] = {}
    index: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for noted in noted_in.values():
        for test, found in json.loads(noted.read_text("utf-8")).items():
            seconds[test] = found["seconds"]
            for path, line in found["lines"]:
                index[path][line].append(test)
    return seconds, index


def chosen(mutant: Mutant, seconds: dict[str, float], lines: dict[int, list[str]]) -> dict[str, float]:
    """The tests for a mutant of the file with these lines, and their seconds: those of its room and the quickest first,
    as many as fit into the budget; then those that start the processes which pass through the file."""
    first, last = mutant.lines
    passed = lines.values() if mutant.imported else [lines.get(line, []) for line in range(first, last + 1)]
    spent, found = 0.0, dict[str, float]()
    for test in sorted(set().union(*passed), key=lambda t: (not t.startswith(own(mutant.room)), seconds[t], t)):
        spent += seconds[test]
        if found and spent > BUDGET_S:
            break
        found[test] = seconds[test]
    return found | dict.fromkeys(LAUNCHED.get(mutant.path, ()), BUDGET_S)


class Results:
    """results.jsonl: what became of each mutant; it counts until the file or, for a survivor, a test has changed."""

    def __init__(self, root: Path, out: Path, mutants: Sequence[Mutant], near: bool) -> None:
        self.journal = Journal(out / "results.jsonl", lambda found: found["id"])
        started = [test for test in LAUNCHED_TESTS if (root / test).exists()]
        self.tests = {
            room: content(root, *files_of_tests(root, room, near), *started)
            for room in {mutant.room for mutant in mutants}
        }
        self.sources = {path: digest((root / path).read_bytes()) for path in {mutant.path for mutant in mutants}}

    def of(self, mutant: Mutant, *, old: bool = False) -> dict[str, Any] | None:
        """The result of a mutant if it still counts; with `old` also that of a survivor under other tests."""
        found = self.journal.known.get(mutant.id)
        if found is None or found["source"] != self.sources[mutant.path]:
            return None
        return found if found["noticed"] or old or found["tests"] == self.tests[mutant.room] else None

    def keep(self, mutant: Mutant, answer: dict[str, Any]) -> dict[str, Any]:
        what = {name: getattr(mutant, name) for name in ("id", "room", "path", "line", "before", "after")}
        under = {"source": self.sources[mutant.path], "tests": self.tests[mutant.room]}
        self.journal.add(found := {**what, **answer, **under})
        return found


def try_all(
    root: Path, out: Path, mutants: Sequence[Mutant], results: Results, jobs: int, *, near: bool, again: bool
) -> None:
    """Try every mutant that has no result, or every one."""
    waiting = [mutant for mutant in mutants if again or results.of(mutant) is None]
    if not waiting:
        return
    files = sorted({file for room in {mutant.room for mutant in mutants} for file in files_of_tests(root, room, near)})
    with workers(root, min(jobs, len(waiting))) as pool:
        seconds, index = who_passes(root, out, files, pool)
        tests = [chosen(mutant, seconds, index[mutant.path]) for mutant in waiting]
        mutant_of = {pool.submit(tried, *each): each[0] for each in zip(waiting, tests, strict=True)}
        for number, answer in enumerate(as_completed(mutant_of), 1):
            found = results.keep(mutant := mutant_of[answer], answer.result())
            word = "late" if found["late"] else "noticed" if found["noticed"] else "SURVIVED"
            say(f"{number}/{len(waiting)} {found['seconds']:5.1f} s {word:8} {mutant}")


def table(mutants: Sequence[Mutant], results: Results, same: Mapping[str, str]) -> tuple[str, float]:
    """The table as text, and the share of mutants noticed among those that are another program."""
    lines = [f"{'room':<12} {'mutants':>8} {'noticed':>8} {'late':>6} {'survived':>9} {'same':>6} {'score':>7}"]
    survivors, share = [], 0.0
    for room in [*dict.fromkeys(mutant.room for mutant in mutants), "all"]:
        mine = [mutant for mutant in mutants if room in (mutant.room, "all")]
        judged = [(mutant, found) for mutant in mine if mutant.id not in same and (found := results.of(mutant))]
        survivors = [str(mutant) for mutant, found in judged if not found["noticed"]]  # at last of all rooms
        noticed, late = len(judged) - len(survivors), sum(found["late"] for _, found in judged)
        share = noticed / len(judged) if judged else 0.0
        counts = f"{noticed:>8} {late:>6} {len(survivors):>9} {sum(m.id in same for m in mine):>6} {share:>7.1%}"
        lines.append(f"{room:<12} {len(mine):>8} {counts}")
    lines += ["(late: noticed by a time limit, among the noticed; same: the same program after all, not in the score)"]
    return "\n".join([*lines, *(["", "survived:"] if survivors else []), *survivors]), share


# ------------------------------------------------------------ the workers, which fork for each run of pytest


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
