"""Mutants are tried in copies of the tree, by several workers; what is known is kept and not tried again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tools.mutation.mutants import Mutant
from tools.mutation.rooms import LAUNCHED, LAUNCHED_TESTS, files_of_tests, own
from tools.program import MARK, ROOT, content, digest, keep, kept, kill, marked

NO_TESTS = 5  # pytest's exit code
BUDGET_S = 60.0  # of tests that are tried on one mutant, the room's own and the quickest first
COPIED = ("hpcsplit", "tests", "tools", "pyproject.toml", "README.md", "jobs", "docs", ".importlinter")
Say = Callable[[str], None]


class Worker:
    """One copy of the tree and the process that works in it."""

    def __init__(self, root: Path, tree: Path) -> None:
        self.tree = tree
        for name in COPIED:
            source, target = root / name, tree / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                tree.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.mutation.worker", str(tree)],
            cwd=ROOT, env={**os.environ, MARK: str(tree)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        """End it and what it has started."""
        kill(marked(str(self.tree)))

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(root: Path, count: int) -> Iterator[list[Worker]]:
    """So many, in a temporary folder that is removed with them."""
    with tempfile.TemporaryDirectory(prefix="hpcsplit-mutate-") as name, ExitStack() as stack:
        started = []
        for number in range(count):
            started.append(Worker(root, Path(name) / str(number) / "tree"))
            stack.callback(started[-1].close)
        yield started


def who_passes(root: Path, out: Path, files: Sequence[str], crew: Sequence[Worker], say: Say) -> dict[str, Any]:
    """For each test in the files its seconds and the lines it passes through, from a run without a change.

    What is known of a file of tests is kept until it, or the code, has changed.

    Raises:
        SystemExit: a test fails on the code as it is.
    """
    code, folder = content(root, "hpcsplit"), out / "passing"
    folder.mkdir(exist_ok=True)
    noted_in = {file: folder / f"{code}-{digest((root / file).read_bytes())}-{Path(file).stem}.json" for file in files}
    waiting: Queue[str] = Queue()
    for file in files:
        if not noted_in[file].exists():
            waiting.put(file)

    def record(worker: Worker) -> None:
        for file in _all(waiting):
            say(f"who passes where without a change: {file}")
            draft = noted_in[file].with_suffix(".tmp")
            ended = worker.ask({"record": str(draft), "tests": [file]})
            if ended["code"] not in (0, NO_TESTS):
                raise SystemExit(f"tools/mutate: {file} fails without a change:\n{ended['said']}")
            draft.rename(noted_in[file])

    _each(crew, record)
    return {test: noted for file in files for test, noted in json.loads(noted_in[file].read_text("utf-8")).items()}


def chosen(mutant: Mutant, passing: dict[str, Any], index: dict[str, dict[int, list[str]]]) -> list[str]:
    """The tests for a mutant: those of its room and the quickest first, as many as fit into the budget."""
    first, last = mutant.lines
    lines = index.get(mutant.path, {})
    tests = {test for line in range(first, last + 1) for test in lines.get(line, ())}
    started = LAUNCHED.get(mutant.path, ())
    if mutant.imported:
        tests = {test for of_line in lines.values() for test in of_line}
    spent, found = 0.0, []
    for test in sorted(tests, key=lambda test: (not test.startswith(own(mutant.room)), passing[test]["seconds"], test)):
        spent += passing[test]["seconds"]
        if found and spent > BUDGET_S:
            break
        found.append(test)
    return [*found, *started]


def indexed(passing: dict[str, Any]) -> dict[str, dict[int, list[str]]]:
    """The tests of each line of each file."""
    index: dict[str, dict[int, list[str]]] = {}
    for test, noted in passing.items():
        for path, line in noted["lines"]:
            index.setdefault(path, {}).setdefault(line, []).append(test)
    return index


class Results:
    """results.jsonl: what became of each mutant; it counts until the file or, for a survivor, a test has changed."""

    def __init__(self, root: Path, out: Path, mutants: Sequence[Mutant], near: bool) -> None:
        self.path = out / "results.jsonl"
        started = [test for test in LAUNCHED_TESTS if (root / test).exists()]
        self.tests = {
            room: content(root, *files_of_tests(root, room, near), *started)
            for room in {mutant.room for mutant in mutants}
        }
        self.sources = {path: digest((root / path).read_bytes()) for path in {mutant.path for mutant in mutants}}
        self._known = {found["id"]: found for found in kept(self.path)}
        self._lock = threading.Lock()

    def of(self, mutant: Mutant, *, old: bool = False) -> dict[str, Any] | None:
        """The result of a mutant if it still counts; with `old` also that of a survivor under other tests."""
        found = self._known.get(mutant.id)
        if found is None or found["source"] != self.sources[mutant.path]:
            return None
        return found if found["noticed"] or old or found["tests"] == self.tests[mutant.room] else None

    def keep(self, mutant: Mutant, answer: dict[str, Any]) -> dict[str, Any]:
        found = {"id": mutant.id, "room": mutant.room, "path": mutant.path, "line": mutant.line, **answer}
        found |= {
            "before": mutant.before,
            "after": mutant.after,
            "source": self.sources[mutant.path],
            "tests": self.tests[mutant.room],
        }
        with self._lock:
            self._known[mutant.id] = found
            keep(self.path, found)
        return found


def try_all(
    root: Path, out: Path, mutants: Sequence[Mutant], results: Results, jobs: int, say: Say, *, near: bool, again: bool
) -> None:
    """Try every mutant that has no result, or every one."""
    waiting: Queue[Mutant] = Queue()
    for mutant in mutants:
        if again or results.of(mutant) is None:
            waiting.put(mutant)
    if waiting.empty():
        return
    total = waiting.qsize()
    files = sorted({file for room in {mutant.room for mutant in mutants} for file in files_of_tests(root, room, near)})
    with workers(root, min(jobs, total)) as crew:
        passing = who_passes(root, out, files, crew, say)
        index = indexed(passing)

        def work(worker: Worker) -> None:
            for mutant in _all(waiting):
                found = results.keep(mutant, tried(worker, mutant, passing, index))
                word = "late" if found["late"] else "noticed" if found["noticed"] else "SURVIVED"
                say(f"{total - waiting.qsize()}/{total} {found['seconds']:5.1f} s {word:8} {mutant}")

        _each(crew, work)


def _all(waiting: Queue[Any]) -> Iterator[Any]:
    """What is in the queue, which others empty, too."""
    while True:
        try:
            yield waiting.get_nowait()
        except Empty:
            return


def _each(crew: Sequence[Worker], work: Callable[[Worker], None]) -> None:
    """Let all workers do it at once; the first failure of one is raised."""
    with ThreadPoolExecutor(len(crew)) as pool:
        try:
            for done in [pool.submit(work, worker) for worker in crew]:
                done.result()
        except BaseException:
            for worker in crew:
                worker.kill()
            raise


def tried(
    worker: Worker, mutant: Mutant, passing: dict[str, Any], index: dict[str, dict[int, list[str]]]
) -> dict[str, Any]:
    tests = chosen(mutant, passing, index)
    if not tests:
        return {"noticed": False, "late": False, "by": [], "seconds": 0.0, "tried": 0}
    seconds = [passing[test]["seconds"] if test in passing else BUDGET_S for test in tests]
    question = {
        "path": mutant.path,
        "source": mutant.apply((worker.tree / mutant.path).read_bytes()).decode(),
        "tests": tests,
        "each_s": 15 + 5 * max(seconds),
        "limit_s": 60 + 4 * sum(seconds),
    }
    answer = worker.ask(question)
    return {
        "noticed": answer["code"] != 0,
        "late": answer["late"],
        "by": answer["by"],
        "seconds": answer["seconds"],
        "tried": len(tests),
    }
