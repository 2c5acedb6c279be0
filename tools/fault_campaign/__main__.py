"""tools/faults: the faults of one seed, tried, tabulated and judged."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.fault_campaign.campaign import available_cores, counts_of, reference, summary, try_all
from tools.fault_campaign.drawing import draw
from tools.fault_campaign.problem import CUTS
from tools.fault_campaign.refusing import SCENES, start
from tools.fault_campaign.table import table
from tools.program import INTERRUPTED, ROOT, Parser

FAULTS, SHORT = 204, 8
FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="tools/faults", description=__doc__)
    parser.add_argument("--faults", type=int, help=f"how many (default: {FAULTS})")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--stages", default="1,2,3,4", help="numbers of stages (default: 1,2,3,4)")
    parser.add_argument("--out", type=Path, help="default: runs/faults-SEED")
    parser.add_argument("--short", action="store_true", help=f"{SHORT} faults with 2 stages")
    parser.add_argument("--calls", action="store_true", help="instead: each call of the C library that changes a file")
    parser.add_argument("--every", type=int, default=1, help="of these, only every N-th (default: 1)")
    parser.add_argument(
        "--scenes", default=",".join(SCENES), help=f"what is done meanwhile (default: {','.join(SCENES)})"
    )
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
    cores = available_cores()

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    try:
        references = {k: reference(out, k, cores) for k in stages}
        results = try_all(draw(count, args.seed, stages, counts_of(references)), references, out, cores, say)
    except KeyboardInterrupt:
        say("interrupted; start the same command again to continue")
        return INTERRUPTED
    text = table(results)
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    (out / "results.json").write_text(json.dumps(summary(results), indent=1) + "\n", encoding="utf-8")
    print(text)
    say(f"{time.monotonic() - began:.0f} s; table and values: {out}/table.txt, results.json")
    return 0 if all(result.good for result in results) else FAILED


def _refuse(parser: Parser, args: argparse.Namespace) -> int:
    scenes = args.scenes.split(",")
    if not set(scenes) <= set(SCENES):
        parser.error(f"--scenes {args.scenes} must be of {','.join(SCENES)}, with commas")
    if args.every < 1:
        parser.error(f"--every {args.every} must be 1 or more")
    try:
        return start((args.out or ROOT / "runs" / "faults-calls").resolve(), scenes, args.every)
    except RuntimeError as error:
        parser.error(f"--calls: {error}")
        raise


if __name__ == "__main__":
    raise SystemExit(main())
