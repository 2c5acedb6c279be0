"""Mutants are tried in copies of the tree, by several workers; what is known is kept and not tried again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from tools.mutation.mutants import Mutant
from tools.mutation.rooms import LAUNCHED, LAUNCHED_TESTS, files_of_tests, own
from tools.program import MARK, ROOT, Journal, content, digest, kill, marked, say

NO_TESTS = 5  # pytest's exit code
BUDGET_S = 60.0  # of tests that are tried on one mutant, the room's own and the quickest first
T = TypeVar("T")
COPIED = ("hpcsplit", "tests", "tools", "pyproject.toml", "README.md", "jobs", "docs", ".importlinter")


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
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

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


def who_passes(root: Path, out: Path, files: Sequence[str], crew: Sequence[Worker]) -> dict[str, Any]:
    """For each test in the files its seconds and the lines it passes through, from a run without a change.

    What is known of a file of tests is kept until it, or the code, has changed.

    Raises:
        SystemExit: a test fails on the code as it is.
    """
    code, folder = content(root, "hpcsplit"), out / "passing"
    folder.mkdir(exist_ok=True)
    noted_in = {file: folder / f"{code}-{digest((root / file).read_bytes())}-{Path(file).stem}.json" for file in files}

    def record(worker: Worker, file: str) -> None:
        say(f"who passes where without a change: {file}")
        draft = noted_in[file].with_suffix(".tmp")
        ended = worker.ask({"record": str(draft), "tests": [file]})
        if ended["code"] not in (0, NO_TESTS):
            raise SystemExit(f"tools/mutate: {file} fails without a change:\n{ended['said']}")
        draft.rename(noted_in[file])

    _each(crew, record, [file for file in files if not noted_in[file].exists()])
    return {test: noted for file in files for test, noted in json.loads(noted_in[file].read_text("utf-8")).items()}


def chosen(mutant: Mutant, passing: dict[str, Any], index: dict[str, dict[int, list[str]]]) -> list[str]:
    """The tests for a mutant: those of its room and the quickest first, as many as fit into the budget."""
    first, last = mutant.lines
    lines = index.get(mutant.path, {})
    tests = {test for line in range(first, last + 1) for test in lines.get(line, ())}
    started = LAUNCHED.get(mutant.path, ())
    if mutant.imported:
        tests = {test for of_line in lines.values() for test in of_line}
    spent, found = 0.0, list[str]()
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
    with workers(root, min(jobs, len(waiting))) as crew:
        passing, number = who_passes(root, out, files, crew), count(1)
        index = indexed(passing)

        def work(worker: Worker, mutant: Mutant) -> None:
            found = results.keep(mutant, tried(worker, mutant, passing, index))
            word = "late" if found["late"] else "noticed" if found["noticed"] else "SURVIVED"
            say(f"{next(number)}/{len(waiting)} {found['seconds']:5.1f} s {word:8} {mutant}")

        _each(crew, work, waiting)


def _each(crew: Sequence[Worker], work: Callable[[Worker, T], None], what: Sequence[T]) -> None:
    """Let all workers do it at once, one thing after the other; the first failure of one is raised."""
    queue = iter(what)  # that of a list may be asked by several threads

    def each(worker: Worker) -> None:
        for one in queue:
            work(worker, one)

    with ThreadPoolExecutor(len(crew)) as pool:
        try:
            list(pool.map(each, crew))
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
    kept = {name: answer[name] for name in ("late", "by", "seconds")}
    return {"noticed": answer["code"] != 0, **kept, "tried": len(tests)}


def table(mutants: Sequence[Mutant], results: Results, same: Mapping[str, str]) -> tuple[str, float]:
    """The table as text, and the share of mutants noticed among those that are another program."""
    rooms = list(dict.fromkeys(mutant.room for mutant in mutants))
    lines = [f"{'room':<12} {'mutants':>8} {'noticed':>8} {'late':>6} {'survived':>9} {'same':>6} {'score':>7}"]
    survivors, share = [], 0.0
    for room in [*rooms, "all"]:
        mine = [mutant for mutant in mutants if room in (mutant.room, "all")]
        judged = [(mutant, found) for mutant in mine if mutant.id not in same and (found := results.of(mutant))]
        noticed = sum(found["noticed"] for _, found in judged)
        late = sum(found["late"] for _, found in judged)
        share = noticed / len(judged) if judged else 0.0
        counts = f"{noticed:>8} {late:>6} {len(judged) - noticed:>9} {sum(m.id in same for m in mine):>6} {share:>7.1%}"
        lines.append(f"{room:<12} {len(mine):>8} {counts}")
        if room != "all":
            survivors += [mutant for mutant, found in judged if not found["noticed"]]
    lines += ["(late: noticed by a time limit, among the noticed; same: the same program after all, not in the score)"]
    return "\n".join([*lines, *(["", "survived:"] if survivors else []), *map(str, survivors)]), share
