"""One fault: the run that it strikes, how that ends, and the runs that continue it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hpcsplit.errors import DONE, REQUEUE
from tools.campaigns.moments import DAMAGES, SIGNALS, STALLS, Fault
from tools.campaigns.runs import Learned, continued, learned, write_config
from tools.program import Ended, Sections, Start, last_line, text

CUTS: dict[int, list[int]] = {1: [], 2: [2], 3: [2, 3], 4: [1, 2, 3]}
EPOCHS = 6
STALL_LIMIT_S = 9.0  # more than the ranks of a start may come apart on a busy machine
END_S = 5.0  # from the fault to the end of the whole job
STOP_S = 60.0  # the same for a signal, which lets a step, an evaluation and a checkpoint pass
HANGS_S = 180.0  # a run of this length is stuck
CONTINUATIONS = 5
_REMOVE = re.compile(r"checkpoint (\S+) is damaged: .*Remove that folder and start again")


@dataclass(frozen=True)
class Reference:
    """A run without faults: what it learned, how long it took (s), how often each rank came to each hook."""

    records: Learned
    seconds: float
    calls: dict[int, dict[str, int]]


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


def reference(out: Path, stages: int) -> Reference:
    """The run without faults for this number of stages, made once: two serial and four parallel epochs."""
    place, kept = out / f"reference-{stages}", out / f"reference-{stages}.json"
    if not kept.exists():
        shutil.rmtree(place, ignore_errors=True)
        settings: Sections = {
            "split": {"cuts": CUTS[stages]},
            "schedule": {"epochs": EPOCHS},
            "checkpoint": {"aux": "copy", "keep": 2, "every_minutes": 0.01},
            "run": {"stall_limit": STALL_LIMIT_S / 60},
        }
        config = write_config(out / f"stages-{stages}.toml", settings)
        began = time.time()
        ended, said = run(place, config, stages, {"counts": str(place / "counts")}, 1)
        records = learned(place / "run")
        if ended.code or [record["epoch"] for record in records] != list(range(EPOCHS)):
            raise SystemExit(f"the run without faults with {stages} stages ended with {ended.code}: {last_line(said)}")
        calls = {rank: json.loads((place / f"counts-{rank}.json").read_text()) for rank in range(stages)}
        values = {"records": records, "seconds": ended.at - began, "calls": calls}
        kept.write_text(json.dumps(values) + "\n", encoding="utf-8")
    return msgspec.json.decode(kept.read_bytes(), type=Reference)


def run(place: Path, config: Path, stages: int, spec: dict[str, Any], number: int) -> tuple[Ended, str]:
    """Start `number` of the run in `place`/run, with what it prints in `place`; and what it said on standard error."""
    place.mkdir(parents=True, exist_ok=True)
    name = f"start-{number}"
    told, err = place / f"{name}.json", place / f"{name}.err"
    told.write_text(json.dumps(spec), encoding="utf-8")
    words = ["-m", "tools.campaigns.injected", told, "train", config, "--run-dir", place / "run"]
    started = Start(words, stages, f"{place}-{name}", place / f"{name}.out", err, HPCSPLIT_PROGRESS="plain")
    return started.end(HANGS_S), text(err)


def attempt(fault: Fault, place: Path, config: Path, known: Reference) -> Result:
    """Let the fault strike a fresh run, and continue that to its end."""
    marker = place / "struck"
    for earlier in (1, 2, 4):  # checkpoints by the clock are not as many in every run
        shutil.rmtree(place, ignore_errors=True)
        spec: dict[str, Any] = {"rank": fault.rank, "kind": fault.kind, "marker": str(marker)}
        when = {"at": time.time() + fault.share * known.seconds / earlier}
        spec |= {"hook": fault.hook, "call": max(1, fault.call // earlier)} if fault.hook else when
        first, said = run(place, config, fault.stages, spec, 1)
        if marker.exists() or first.code != DONE:
            break
    struck = marker.exists()
    seconds = first.at - float(marker.read_text(encoding="ascii").split()[0]) if struck else 0.0
    all_hear = all(Path(f"{marker}-hears-{rank}").exists() for rank in range(fault.stages))
    signalled = struck and fault.kind in SIGNALS and all_hear
    allowed_s = STOP_S if signalled else END_S
    if fault.kind in STALLS:  # the other ranks may still be coming up
        began = (place / "run" / "log" / f"rank-{fault.rank:03d}.log").exists()
        allowed_s += STALL_LIMIT_S + (0.0 if began else known.seconds)
    usual, last = first.code in (DONE, REQUEUE), last_line(said)
    complaints = {
        first.why: bool(first.why),
        f"{first.left} processes outlived it": first.left > 0,
        f"ended with {first.code} before the fault: {last}": not struck and not usual,
        f"ended after {seconds:.1f} s, {allowed_s:.1f} s are allowed": seconds > allowed_s,
        f"a signal led to exit {first.code}: {last}": signalled and not usual,
        "ended as if nothing had happened": struck and not signalled and first.code == DONE,
    }
    if fault.kind in DAMAGES and struck:
        damage(fault, place / "run")

    def again(number: int) -> tuple[int, str, str]:
        """Start once more, and do what an error advises."""
        ended, words = run(place, config, fault.stages, {}, number)
        trouble = f"stuck {bool(ended.why)}, {ended.left} left" if ended.why or ended.left else ""
        if not trouble and ended.code and (advice := _REMOVE.search(words)):
            shutil.rmtree(advice[1])
            return REQUEUE, words, ""
        return ended.code, words, trouble

    starts, wrong = continued(again, first.code, place / "run", known.records, CONTINUATIONS)
    names = f"hpcsplit: rank {fault.rank} (stage {fault.rank}) on ", f"from stage {fault.rank} since ", "all ranks to "
    named = any(name in said for name in names)
    late = tuple(note for note, holds in complaints.items() if holds)
    notes = (*late, wrong) if wrong else late
    return Result(fault, struck, first.code, seconds, not late, named, not wrong, starts, notes)


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
