"""Mutants are tried in copies of the tree, by several workers; what is known is kept and not tried again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tools.mutation.mutants import Mutant
from tools.mutation.rooms import LAUNCHED, TESTS, near

BUDGET_S = 60.0  # of tests that are tried on one mutant, the room's own and the quickest first
COPIED = ("hpcsplit", "tests", "tools", "pyproject.toml", "README.md", "jobs", "docs", ".importlinter")
Say = Callable[[str], None]


class Worker:
    """One copy of the tree and the process that works in it."""

    def __init__(self, root: Path, tree: Path) -> None:
        for name in COPIED:
            source, target = root / name, tree / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                tree.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.mutation.worker", str(tree)],
            cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

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


def state(root: Path, *folders: str) -> str:
    """A hash of all Python files in the folders."""
    whole = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        whole.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def who_passes(root: Path, out: Path, worker: Worker, say: Say) -> dict[str, Any]:
    """For each test its seconds and lines, from a run of all tests that are tried on mutants.

    Raises:
        SystemExit: a test fails on the code as it is.
    """
    kept = out / f"passing-{state(root, 'hpcsplit', 'tests')}.json"
    if not kept.exists():
        say("a run of the tests without a change, to see which of them pass where (minutes)")
        draft = kept.with_suffix(".tmp")
        ended = worker.ask({"record": str(draft), "tests": list(TESTS)})
        if ended["code"] != 0:
            raise SystemExit(f"tools/mutate: the tests fail without a change:\n{ended['said']}")
        for old in out.glob("passing-*.json"):
            old.unlink()
        draft.rename(kept)
    return json.loads(kept.read_text(encoding="utf-8"))


def chosen(mutant: Mutant, passing: dict[str, Any], index: dict[str, dict[int, list[str]]]) -> list[str]:
    """The tests for a mutant: those of its room and the quickest first, as many as fit into the budget."""
    first, last = mutant.lines
    lines = index.get(mutant.path, {})
    tests = {test for line in range(first, last + 1) for test in lines.get(line, ())}
    spent, found = 0.0, []
    for test in sorted(tests, key=lambda test: (not near(mutant.room, test), passing[test]["seconds"], test)):
        spent += passing[test]["seconds"]
        if found and spent > BUDGET_S:
            break
        found.append(test)
    return found or list(LAUNCHED.get(mutant.path, ()))


def indexed(passing: dict[str, Any]) -> dict[str, dict[int, list[str]]]:
    """The tests of each line of each file."""
    index: dict[str, dict[int, list[str]]] = {}
    for test, noted in passing.items():
        for path, line in noted["lines"]:
            index.setdefault(path, {}).setdefault(line, []).append(test)
    return index


class Results:
    """results.jsonl: what became of each mutant; it counts until the file or, for a survivor, a test has changed."""

    def __init__(self, root: Path, out: Path) -> None:
        self.path, self.root = out / "results.jsonl", root
        self.tests = state(root, "tests")
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self._known = {found["id"]: found for found in map(json.loads, lines)}
        self._lock = threading.Lock()

    def of(self, mutant: Mutant, *, old: bool = False) -> dict[str, Any] | None:
        """The result of a mutant if it still counts; with `old` also that of a survivor under other tests."""
        found = self._known.get(mutant.id)
        if found is None or found["source"] != self._source(mutant):
            return None
        return found if found["noticed"] or old or found["tests"] == self.tests else None

    def keep(self, mutant: Mutant, answer: dict[str, Any]) -> dict[str, Any]:
        found = {"id": mutant.id, "room": mutant.room, "path": mutant.path, "line": mutant.line, **answer}
        found |= {"before": mutant.before, "after": mutant.after, "source": self._source(mutant), "tests": self.tests}
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            self._known[mutant.id] = found
            file.write(json.dumps(found) + "\n")
        return found

    def _source(self, mutant: Mutant) -> str:
        return hashlib.sha256((self.root / mutant.path).read_bytes()).hexdigest()[:16]


def try_all(
    root: Path, out: Path, mutants: Sequence[Mutant], results: Results, jobs: int, say: Say, *, again: bool
) -> None:
    """Try every mutant that has no result, or every one."""
    waiting: Queue[Mutant] = Queue()
    for mutant in mutants:
        if again or results.of(mutant) is None:
            waiting.put(mutant)
    if waiting.empty():
        return
    with workers(root, min(jobs, waiting.qsize())) as crew:
        passing = who_passes(root, out, crew[0], say)
        index, total, failed = indexed(passing), waiting.qsize(), []

        def work(worker: Worker) -> None:
            try:
                while True:
                    mutant = waiting.get_nowait()
                    found = results.keep(mutant, tried(root, worker, mutant, passing, index))
                    word = "late" if found["late"] else "noticed" if found["noticed"] else "SURVIVED"
                    say(f"{total - waiting.qsize()}/{total} {found['seconds']:5.1f} s {word:8} {mutant}")
            except Empty:
                pass
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in crew]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


def tried(
    root: Path, worker: Worker, mutant: Mutant, passing: dict[str, Any], index: dict[str, dict[int, list[str]]]
) -> dict[str, Any]:
    tests = chosen(mutant, passing, index)
    if not tests:
        return {"noticed": False, "late": False, "by": [], "seconds": 0.0, "tried": 0}
    seconds = [passing[test]["seconds"] if test in passing else BUDGET_S for test in tests]
    question = {
        "path": mutant.path,
        "source": mutant.apply((root / mutant.path).read_bytes()).decode(),
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
