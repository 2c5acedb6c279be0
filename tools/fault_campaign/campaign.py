"""A whole campaign: the runs without faults, then every fault that has no result yet."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fault_campaign.drawing import Counts, Fault
from tools.fault_campaign.problem import Outcome, write_config
from tools.fault_campaign.trial import Result, attempt, last_line, run
from tools.program import keep, kept

Say = Callable[[str], None]


@dataclass(frozen=True)
class Reference:
    """A run without faults: what it left, how long it took (s), how often each rank came to each hook."""

    outcome: Outcome
    seconds: float
    calls: dict[int, dict[str, int]]


def reference(out: Path, stages: int, cores: Sequence[int]) -> Reference:
    """The run without faults for this number of stages, made once."""
    place, found = out / f"reference-{stages}", out / f"reference-{stages}.json"
    if not found.exists():
        shutil.rmtree(place, ignore_errors=True)
        config = write_config(out / f"stages-{stages}.toml", stages)
        began = time.time()
        ended = run(place, config, stages, {"counts": str(place / "counts")}, cores, "start-1")
        outcome = Outcome.of(place / "run")
        if ended.code or not outcome.complete():
            raise SystemExit(
                f"the run without faults with {stages} stages ended with {ended.code}: {last_line(ended.said)}"
            )
        calls = {rank: json.loads((place / f"counts-{rank}.json").read_text()) for rank in range(stages)}
        values = {"records": outcome.records, "seconds": ended.at - began, "calls": calls}
        found.write_text(json.dumps(values) + "\n", encoding="utf-8")
    values = json.loads(found.read_text(encoding="utf-8"))
    return Reference(Outcome(values["records"]), values["seconds"], {int(r): c for r, c in values["calls"].items()})


def counts_of(references: dict[int, Reference]) -> Counts:
    return {stages: reference.calls for stages, reference in references.items()}


class Journal:
    """The file of results, one JSON line each; what is in it is not tried again."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.Lock()
        self.results = [Result.from_json(value) for value in kept(path)]

    def known(self, fault: Fault) -> Result | None:
        return next((result for result in self.results if result.fault == fault), None)

    def add(self, result: Result) -> None:
        with self.lock:
            self.results.append(result)
            keep(self.path, result.as_json())


def try_all(
    faults: Sequence[Fault], references: dict[int, Reference], out: Path, cores: Sequence[int], say: Say
) -> list[Result]:
    """The results of all faults, those of earlier starts included."""
    journal = Journal(out / "results.jsonl")
    left = [fault for fault in faults if not journal.known(fault)]
    say(f"{len(faults)} faults, {len(faults) - len(left)} of them tried already")

    def one(fault: Fault, mine: Sequence[int]) -> None:
        place = out / f"fault-{fault.number:04d}"
        known = references[fault.stages]
        result = attempt(fault, place, out / f"stages-{fault.stages}.toml", known.outcome, known.seconds, mine)
        journal.add(result)
        if result.good:
            shutil.rmtree(place, ignore_errors=True)
        verdict = "good" if result.good else f"BAD ({'; '.join(result.notes)}), kept in {place}"
        say(f"{fault}: exit {result.code} after {result.seconds:.1f} s, {result.starts} starts, {verdict}")

    for fault in [fault for fault in left if fault.stages > 1]:
        one(fault, cores)
    free = [[core] for core in cores]
    with ThreadPoolExecutor(len(cores)) as pool:  # one rank needs one core

        def alone(fault: Fault) -> None:
            core = free.pop()
            try:
                one(fault, core)
            finally:
                free.append(core)

        list(pool.map(alone, [fault for fault in left if fault.stages == 1]))
    return [known for fault in faults if (known := journal.known(fault))]


def available_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """All results, for a program to read."""
    return {
        "tried": len(results),
        "struck": sum(r.struck for r in results),
        "in_time": sum(r.in_time for r in results),
        "equal": sum(r.equal for r in results),
        "results": [r.as_json() for r in results],
    }
