"""One fault: the run that it strikes, how that ends, and the runs that continue it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcsplit.errors import DONE, REQUEUE
from tools.fault_campaign.drawing import Fault
from tools.fault_campaign.problem import STALL_LIMIT_S, Outcome
from tools.fault_campaign.striking import DAMAGES, SIGNALS, STALLS
from tools.program import kill, last_line, launch, marked, survivors

END_S = 5.0  # from the fault to the end of the whole job
STOP_S = 60.0  # the same for a signal, which lets a step, an evaluation and a checkpoint pass
HANGS_S = 180.0  # a run of this length is stuck
CONTINUATIONS = 5
_REMOVE = re.compile(r"checkpoint (\S+) is damaged: .*Remove that folder and start again")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, when (s since 1970), what it said on the standard error, who outlived it."""

    code: int
    at: float
    said: str
    survivors: int
    stuck: bool


@dataclass(frozen=True)
class Result:
    """What became of a fault; `notes` say what went wrong."""

    fault: Fault
    struck: bool
    code: int
    seconds: float
    in_time: bool
    named: bool
    equal: bool
    starts: int
    notes: tuple[str, ...]

    @property
    def good(self) -> bool:
        return self.in_time and self.equal

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Result:
        return cls(**{**values, "fault": Fault(**values["fault"]), "notes": tuple(values["notes"])})


def run(place: Path, config: Path, stages: int, spec: dict[str, Any], cores: Sequence[int], name: str) -> Ended:
    """One start of the run in `place`/run, its output in `place`/NAME.out and .err."""
    place.mkdir(parents=True, exist_ok=True)
    told, mark = place / f"{name}.json", f"{place}-{name}"
    told.write_text(json.dumps(spec), encoding="utf-8")
    words = ["-m", "tools.fault_campaign.injected", str(told), "train", str(config), "--run-dir", str(place / "run")]
    with (place / f"{name}.out").open("wb") as out, (place / f"{name}.err").open("wb") as err:
        os.sched_setaffinity(0, cores)  # of this thread; the child inherits it
        process = launch(words, stages, mark, out, err, {"HPCSPLIT_PROGRESS": "plain"})
        stuck, left = False, list[int]()
        try:
            process.wait(HANGS_S)
        except subprocess.TimeoutExpired:
            stuck = True
        finally:  # also when the campaign is interrupted
            at = time.time()
            left = marked(mark) if process.poll() is None else survivors(mark)
            kill(left)
            process.wait()
    said = (place / f"{name}.err").read_text(encoding="utf-8", errors="replace")
    return Ended(process.returncode, at, said, len(left), stuck)


def attempt(
    fault: Fault, place: Path, config: Path, expected: Outcome, reference_s: float, cores: Sequence[int]
) -> Result:
    """Let the fault strike a fresh run, and continue that to its end."""
    marker = place / "struck"
    for earlier in (1, 2, 4):  # checkpoints by the clock are not as many in every run
        shutil.rmtree(place, ignore_errors=True)
        spec: dict[str, Any] = {"rank": fault.rank, "kind": fault.kind, "marker": str(marker)}
        when = {"at": time.time() + fault.share * reference_s / earlier}
        spec |= {"hook": fault.hook, "call": max(1, fault.call // earlier)} if fault.hook else when
        first = run(place, config, fault.stages, spec, cores, "start-1")
        if marker.exists() or first.code != DONE:
            break
    struck_at = float(marker.read_text(encoding="ascii").split()[0]) if marker.exists() else None
    seconds = first.at - struck_at if struck_at else 0.0
    hears = all(Path(f"{marker}-hears-{rank}").exists() for rank in range(fault.stages))
    began = (place / "run" / "log" / f"rank-{fault.rank:03d}.log").exists()
    limits = Limits(hears=hears, start_s=0.0 if began else reference_s)
    complaints = list(_complaints(fault, first, seconds if struck_at else None, limits))
    if fault.kind in DAMAGES and struck_at:
        damage(fault, place / "run")
    starts, problems = _continue(place, config, fault, first.code, cores)
    equal = not problems
    if equal and (difference := Outcome.of(place / "run").differs(expected)):
        equal, problems = False, [difference]
    names = (
        f"hpcsplit: rank {fault.rank} (stage {fault.rank}) on ",
        f"from stage {fault.rank} since ",
        "all ranks to ",
    )
    named = any(name in first.said for name in names)
    notes = (*complaints, *problems)
    return Result(fault, struck_at is not None, first.code, seconds, not complaints, named, equal, starts, notes)


@dataclass(frozen=True)
class Limits:
    """How long the end may take depends on whether all ranks could take a signal, and on how long (s) the other ranks
    may still have been coming up."""

    hears: bool
    start_s: float

    def seconds(self, fault: Fault) -> float:
        if fault.kind in STALLS:
            return STALL_LIMIT_S + END_S + self.start_s
        return STOP_S if fault.kind in SIGNALS and self.hears else END_S


def _complaints(fault: Fault, first: Ended, seconds: float | None, limits: Limits) -> Iterator[str]:
    """What is wrong with the end of the run that was struck, `seconds` after the fault."""
    if first.stuck:
        yield f"still there after {HANGS_S:.0f} s"
    if first.survivors:
        yield f"{first.survivors} processes outlived it"
    if seconds is None:
        if first.code not in (DONE, REQUEUE):
            yield f"ended with {first.code} before the fault: {last_line(first.said)}"
        return
    signalled = fault.kind in SIGNALS and limits.hears
    if seconds > (allowed := limits.seconds(fault)):
        yield f"ended after {seconds:.1f} s, {allowed:.1f} s are allowed"
    if signalled and first.code not in (DONE, REQUEUE):
        yield f"a signal led to exit {first.code}: {last_line(first.said)}"
    if not signalled and first.code == DONE:
        yield "ended as if nothing had happened"


def _continue(place: Path, config: Path, fault: Fault, code: int, cores: Sequence[int]) -> tuple[int, list[str]]:
    """Start the same command until it is done, and do what its errors advise; how many starts, and what is wrong."""
    starts = 1
    while code != DONE:
        if starts > CONTINUATIONS:
            return starts, [f"not done after {starts} starts"]
        starts += 1
        again = run(place, config, fault.stages, {}, cores, f"start-{starts}")
        code = again.code
        if again.stuck or again.survivors:
            return starts, [f"start {starts} did not end well: stuck {again.stuck}, {again.survivors} left"]
        if advice := _REMOVE.search(again.said):
            shutil.rmtree(advice[1])
        elif code not in (DONE, REQUEUE):
            return starts, [f"start {starts} ended with {code}: {last_line(again.said)}"]
    return starts, []


def damage(fault: Fault, run_dir: Path) -> None:
    """Cut off a file of the newest checkpoint or of the store, or turn one of its bits."""
    if fault.moment.startswith("checkpoint"):
        folder = max(p for p in (run_dir / "checkpoints").glob("epoch-*") if not p.name.endswith(".tmp"))
    else:
        folder = run_dir / "aux"
    chance = random.Random(fault.share)
    path = chance.choice(sorted(folder.iterdir()))
    size = path.stat().st_size
    position = chance.randrange(size)
    if fault.kind == "truncated":
        os.truncate(path, position)
        return
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))
