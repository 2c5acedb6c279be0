"""tools/faults: the faults of one seed, tried, tabulated and judged."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import msgspec

from tools.campaigns.moments import DISK, KINDS, MOMENTS, STALLS, Fault, draw
from tools.campaigns.refusing import SCENES, refuse
from tools.campaigns.trial import CUTS, Reference, Result, attempt, reference
from tools.program import FAILED, ROOT, Journal, Parser, continuable, crossed, say

FAULTS, SHORT = 204, 8
SPEAKING = ("exception", "thread exception", *DISK, *STALLS)


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
        return _refuse(parser, args)
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


def _refuse(parser: Parser, args: argparse.Namespace) -> int:
    scenes = args.scenes.split(",")
    if not set(scenes) <= set(SCENES):
        parser.error(f"--scenes {args.scenes} must be of {','.join(SCENES)}, with commas")
    if args.every < 1:
        parser.error(f"--every {args.every} must be 1 or more")
    try:
        return refuse((args.out or ROOT / "runs" / "faults-calls").resolve(), scenes, args.every)
    except RuntimeError as error:
        parser.error(f"--calls: {error}")


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
