"""tools/faults: the faults of one seed, tried, tabulated and judged."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from hpcsplit.errors import DONE, REQUEUE
from tools.campaigns.moments import DAMAGES, DISK, KINDS, MOMENTS, SIGNALS, STALLS, Fault, draw
from tools.campaigns.refusing import SCENES, refuse
from tools.campaigns.runs import Learned, continued, learned, write_config
from tools.program import FAILED, ROOT, Ended, Journal, Parser, Start, continuable, crossed, last_line, say

FAULTS, SHORT = 204, 8
SPEAKING = ("exception", "thread exception", *DISK, *STALLS)
CUTS: dict[int, list[int]] = {1: [], 2: [2], 3: [2, 3], 4: [1, 2, 3]}
EPOCHS = 6
STALL_LIMIT_S = 9.0  # more than the ranks of a start may come apart on a busy machine
END_S = 5.0  # from the fault to the end of the whole job
STOP_S = 60.0  # the same for a signal, which lets a step, an evaluation and a checkpoint pass
HANGS_S = 180.0  # a run of this length is stuck
CONTINUATIONS = 5
_REMOVE = re.compile(r"checkpoint (\S+) is damaged: .*Remove that folder and start again")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="tools/faults", description=__doc__)
    parser.add_argument("--faults", type=int, help=f"how many (default: {FAULTS})")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--stages", default="1,2,3,4", help="numbers of stages (default: 1,2,3,4)")
    parser.add_argument("--out", type=Path, help="default: runs/faults-SEED")
    parser.add_argument("--short", action="store_true", help=f"{SHORT} faults with 2 stages")
    parser.add_argument("--calls", action="store_true", help="instead: each call of the C library that changes a file")
    parser.add_argument("--every", type=int, default=1, help="of these, only every N-th (default: 1)")
    all_scenes = ",".join(SCENES)
    parser.add_argument("--scenes", default=all_scenes, help=f"what is done meanwhile (default: {all_scenes})")
    args = parser.parse_args(argv)
    if args.calls:
        scenes = args.scenes.split(",")
        if not set(scenes) <= set(SCENES):
            parser.error(f"--scenes {args.scenes} must be of {all_scenes}, with commas")
        if args.every < 1:
            parser.error(f"--every {args.every} must be 1 or more")
        try:
            return refuse((args.out or ROOT / "runs" / "faults-calls").resolve(), scenes, args.every)
        except RuntimeError as error:
            parser.error(f"--calls: {error}")
    try:
        stages = [2] if args.short else sorted({int(word) for word in args.stages.split(",")})
    except ValueError:
        parser.error(f"--stages {args.stages} must be numbers with commas")
    if not set(stages) <= CUTS.keys():
        parser.error(f"--stages {args.stages}: the network of the campaign has {min(CUTS)} to {max(CUTS)} stages")
    count = args.faults or (SHORT if args.short else FAULTS)
    out = (args.out or ROOT / "runs" / f"faults-{args.seed}{'-short' * args.short}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    with continuable(f"table and values: {out}/table.txt, results.json"):
        references = {k: reference(out, k) for k in stages}
        faults = draw(count, args.seed, stages, {k: known.calls for k, known in references.items()})
        results = try_all(faults, references, out)
        values = {
            "tried": len(results),
            **{what: sum(getattr(r, what) for r in results) for what in ("struck", "in_time", "equal")},
            "results": [asdict(r) for r in results],
        }
        (out / "table.txt").write_text(table(results) + "\n", encoding="utf-8")
        (out / "results.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        print(table(results))
    return 0 if all(result.good for result in results) else FAILED


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
        config = write_config(
            out / f"stages-{stages}.toml",
            split={"cuts": CUTS[stages]},
            schedule={"epochs": EPOCHS},
            checkpoint={"aux": "copy", "keep": 2, "every_minutes": 0.01},
            run={"stall_limit": STALL_LIMIT_S / 60},
        )
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
    name = place / f"start-{number}"
    told, out, err = (name.with_suffix(kind) for kind in (".json", ".out", ".err"))
    told.write_text(json.dumps(spec), encoding="utf-8")
    words = ["-m", "tools.campaigns.injected", told, "train", config, "--run-dir", place / "run"]
    started = Start(words, stages, f"{place}-{name.name}", out, err, HPCSPLIT_PROGRESS="plain")
    return started.end(HANGS_S), started.said()


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


def try_all(faults: Sequence[Fault], references: dict[int, Reference], out: Path) -> list[Result]:
    """The results of all faults, those of earlier starts included."""
    journal = Journal(out / "results.jsonl", lambda value: Fault(**value["fault"]))
    left = [fault for fault in faults if fault not in journal.known]
    say(f"{len(faults)} faults, {len(faults) - len(left)} of them tried already")

    def one(fault: Fault) -> None:
        place = out / f"fault-{fault.number:04d}"
        result = attempt(fault, place, out / f"stages-{fault.stages}.toml", references[fault.stages])
        journal.add(asdict(result))
        if result.good:
            shutil.rmtree(place, ignore_errors=True)
        verdict = "good" if result.good else f"BAD ({'; '.join(result.notes)}), kept in {place}"
        say(f"{fault}: exit {result.code} after {result.seconds:.1f} s, {result.starts} starts, {verdict}")

    for fault in left:
        if fault.stages > 1:
            one(fault)
    cores = sorted(os.sched_getaffinity(0))

    def settle() -> None:
        """One rank needs one core: that of the thread which starts it."""
        os.sched_setaffinity(0, {cores.pop()})

    with ThreadPoolExecutor(len(cores), initializer=settle) as pool:
        list(pool.map(one, [fault for fault in left if fault.stages == 1]))
    return [msgspec.convert(journal.known[fault], Result) for fault in faults]


def table(results: Sequence[Result]) -> str:
    """Kind x moment, each cell tried / ended in time / continued to the same weights; what went wrong; the slowest."""
    moments = [moment for moment in MOMENTS if any(r.fault.moment == moment for r in results)]
    kinds = [kind for kind in KINDS if any(r.fault.kind == kind for r in results)]
    head, rows, columns = "tried/in time/equal", [*moments, "all"], [*kinds, "all"]
    lines = crossed(head, results, rows, columns, lambda r: (r.fault.moment, r.fault.kind), _cell, str.ljust)
    lines.insert(1, "".join("+" if c == "|" else "-" for c in lines[0]))
    by_stages = {k: [r for r in results if r.fault.stages == k] for k in sorted({r.fault.stages for r in results})}
    lines += ["", "by stages: " + ", ".join(f"{k}: {_cell(some)}" for k, some in by_stages.items())]
    if speaking := [r for r in results if r.struck and r.fault.kind in SPEAKING]:
        named = sum(r.named for r in speaking)
        lines.append(f"rank named: {named} of {len(speaking)} where a rank can speak ({', '.join(SPEAKING)})")
    if missed := sum(not r.struck for r in results):
        lines.append(f"{missed} faults did not come: the run had ended before")
    lines += [f"BAD: {r.fault}: {'; '.join(r.notes)}" for r in results if not r.good]
    seconds = {kind: [r.seconds for r in results if r.fault.kind == kind and r.struck] for kind in KINDS}
    slowest = ", ".join(f"{kind} {max(some):.1f}" for kind, some in seconds.items() if some)
    return "\n".join([*lines, f"slowest end (s): {slowest}"])


def _cell(results: Sequence[Result]) -> str:
    return f"{len(results)}/{sum(r.in_time for r in results)}/{sum(r.equal for r in results)}" if results else ""


if __name__ == "__main__":
    raise SystemExit(main())
