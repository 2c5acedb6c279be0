"""tools/soak: the loop, its table and its verdict."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hpcsplit.errors import DONE
from tools.campaigns.runs import learned
from tools.campaigns.soaking import NOTHING, Disturbance, Soaked, Started
from tools.campaigns.trends import complaints, table, trends
from tools.program import FAILED, ROOT, Parser

WINDOW = 5.0  # minutes in a line of the table
_AUX = ("copy", "keep")  # checkpoint.aux of one run and of the next


class Soak:
    """The state of the loop; `starts` and `finished` hold what was measured."""

    def __init__(self, out: Path, seed: int, minutes: float, epochs: int) -> None:
        self.out, self.minutes, self.epochs = out, minutes, epochs
        self.chance = random.Random(seed)
        self.starts: list[Started] = []
        self.finished: list[Started] = []
        self.wrong: list[str] = []
        self.began = time.monotonic()

    @property
    def minute(self) -> float:
        return (time.monotonic() - self.began) / 60

    def go(self) -> None:
        """One run that nobody disturbs, then disturbed ones until the time is up and one of them has been compared."""
        run: Soaked | None = None
        reference: list[tuple[int, str]] = []  # epoch, hash of the weights after it
        usual_files = set[str]()  # that torch leaves in a folder for temporary files, once
        while not self.wrong and not (self.minute >= self.minutes and len(self.finished) > 1):
            runs = len(self.finished)
            run = run or Soaked(self.out / f"run-{runs:04d}", _AUX[runs % 2], self.epochs)
            disturbance = Disturbance.draw(self.chance, self.finished[0].seconds) if runs else Disturbance()
            found = run.start(f"{os.getpid()}-{len(self.starts)}", disturbance, self.minute)
            usual_files |= set() if runs else set(found.left_temporary)
            found.left_temporary = [name for name in found.left_temporary if name not in usual_files]
            self.starts.append(found)
            said = f"run {runs}, {disturbance}: {found.seconds:.1f} s, exit {found.code}, {len(found.epochs)} epochs"
            trouble = f"; {found.complaint}" if found.complaint else ""
            print(f"{found.minute:6.1f} min  {said}{trouble}", file=sys.stderr, flush=True)
            # only what was disturbed may end otherwise than well; a signal may also come before it is heard
            calm = disturbance.kind == NOTHING or disturbance.after_s > found.seconds
            if calm and not found.complaint and found.code != DONE:
                self.wrong.append(f"start {len(self.starts)} ended with {found.code}; see {run.said}")
            if found.code == DONE:
                self.finished.append(found)
                weights = [(record["epoch"], record["weights_sha256"]) for record in learned(run.run)]
                reference = reference if runs else weights
                if weights == reference:
                    shutil.rmtree(run.folder)
                else:
                    said = f"run {runs} has other weights than the one that nobody disturbed"
                    self.wrong.append(f"{said}; see {run.folder}")
                run = None
            if found.complaint:
                return

    def report(self) -> tuple[str, bool]:
        """The table and the verdict in words, also written to soak.json; whether all is well."""
        judged = trends(self.starts, self.finished)
        wrong = [*self.wrong, *complaints(self.starts, judged)]
        resumed = sum(s.disturbance.kind != NOTHING for s in self.starts)
        lines = [
            table(self.starts, self.finished, min(WINDOW, max(self.minutes / 4, 0.5))),
            "",
            *map(str, judged),
            "",
            f"{self.minute:.1f} minutes, {len(self.starts)} starts, {resumed} disturbed, "
            f"{len(self.finished)} runs finished, all but the first compared with it",
            "verdict: " + ("nothing grows" if not wrong else "; ".join(wrong)),
        ]
        values = {
            "minutes": self.minute,
            "good": not wrong,
            "complaints": wrong,
            "runs": len(self.finished),
            "trends": [asdict(t) | {"grows": t.grows} for t in judged],
            "starts": [asdict(s) for s in self.starts],
        }
        (self.out / "soak.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        return "\n".join(lines), not wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="tools/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="which disturbances (default: 0)")
    parser.add_argument("--epochs", type=int, default=40, help="of each run (default: 40)")
    parser.add_argument("--out", type=Path, help="default: runs/soak-SEED")
    args = parser.parse_args(argv)
    if not 0 < args.minutes < 1e6:
        parser.error(f"--minutes {args.minutes} must be a number above 0")
    if args.epochs < 1:
        parser.error(f"--epochs {args.epochs} must be 1 or more")
    out = (args.out or ROOT / "runs" / f"soak-{args.seed}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    soak = Soak(out, args.seed, args.minutes, args.epochs)
    try:
        soak.go()
    except KeyboardInterrupt:
        soak.wrong.append("interrupted")
    text, good = soak.report()
    print(text)
    print(f"values: {out}/soak.json", file=sys.stderr)
    return DONE if good else FAILED


if __name__ == "__main__":
    raise SystemExit(main())
