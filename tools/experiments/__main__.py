"""tools/reproduce: one experiment of the papers, run, tabulated beside the paper, and judged."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import signal
import sys
import tomllib
from argparse import Namespace
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hpcsplit.host.launchers import mpirun
from tools.experiments import running
from tools.experiments.declaring import EXPERIMENTS, SCALES, Row
from tools.experiments.keeping import archive_of, unpack, write_page
from tools.experiments.running import Task
from tools.program import INTERRUPTED, ROOT, Parser

PAGE = ROOT / "docs" / "results.md"
FAILED = 70


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        print(listing())
        return 0
    if args.page:
        named = write_page(ROOT / "runs", PAGE, list(EXPERIMENTS.values()))
        if not named:
            parser.error("no experiment has been run here (runs/reproduce-*); run one first")
        print(f"docs/results.md: {', '.join(named)}")
        return 0
    if not args.name:
        parser.error("say which experiment, or --list")
    return _reproduce(parser, args)


def _parser() -> Parser:
    parser = Parser(prog="tools/reproduce", description=__doc__)
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="an experiment of --list")
    add("--list", action="store_true", help="the experiments, and their rows at each scale")
    add("--page", action="store_true", help="write docs/results.md from all that has been run here")
    add("--scale", choices=SCALES, default="small")
    add("--seeds", type=_count, help="runs of each row, with seeds 0, 1, ... (default: the scale's)")
    add("--epochs", type=_count, help="epochs of every row (default: the scale's)")
    add("--set", dest="settings", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="of every row")
    add("--data", type=Path, help="folder of the data sets (default: $HPCSPLIT_DATA or ./data)")
    add("--out", type=Path, help="default: runs/reproduce-NAME-SCALE[-EPOCHS]")
    add("--only", default="", metavar="ROW,...", help="run only these rows; also rows that the scale leaves")
    add("--kept", action="store_true", help="go on from the runs behind docs/results.md")
    add("--slurm", choices=("arrays", "words", "ended", "table"), help="for jobs/experiment.sbatch")
    add("--show", action="store_true", help="run nothing; the table of what is there")
    return parser


def _reproduce(parser: Parser, args: Namespace) -> int:
    """Run what is missing, print the table of all that is there, and write it into the folder of the runs."""
    experiment = EXPERIMENTS[_known(parser, "experiment", args.name, EXPERIMENTS)]
    if args.scale not in experiment.scales:
        parser.error(f"{args.name} has no scale {args.scale}; take one of {', '.join(experiment.scales)}")
    rows: tuple[Row, ...] = experiment.rows_at(args.scale)
    if args.only:
        keys = {row.key for row in experiment.rows}
        chosen = {_known(parser, "row", key, keys) for key in args.only.split(",")}
        rows = tuple(row for row in experiment.rows if row.key in chosen)

    extra = {"schedule.epochs": args.epochs} if args.epochs else {}
    extra |= dict(args.settings)
    changed = [str(args.epochs)] * bool(args.epochs) + [f"{key.rpartition('.')[2]}={v}" for key, v in args.settings]
    name = "-".join([experiment.name, args.scale, *changed])
    out = (args.out or ROOT / "runs" / f"reproduce-{name}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.kept:
        if not (archive := archive_of(PAGE, name)).exists():
            parser.error(f"docs/results.md has no {name}; leave --kept out")
        print(f"{len(unpack(archive, out))} runs of docs/results.md are put back", file=sys.stderr)
    settings = extra | ({"data.root": str(args.data.resolve())} if args.data else {})
    cores = sorted(os.sched_getaffinity(0))
    ranks = running.ranks_of(experiment) if args.slurm else len(cores)

    def planned(rows: Sequence[Row], seeds: int) -> list[Task]:
        return running.tasks_of(experiment, args.scale, rows=rows, seeds=seeds, extra=settings, out=out, cores=ranks)

    most = experiment.scale(args.scale).seeds
    tasks = [] if args.show else planned(rows, args.seeds or most)
    turns = running.turns_of(tasks)
    if args.slurm in ("arrays", "words", "ended"):
        return _for_slurm(parser, args.slurm, turns, in_turn=experiment.in_turn)
    if args.slurm == "table":
        failures = running.missing(turns)
    else:
        if any(task.command()[0] == mpirun() for task in tasks) and not shutil.which(mpirun()):
            parser.error("there is no mpirun beside this Python or on PATH; tools/reproduce makes the environment")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        say = partial(print, file=sys.stderr)
        try:
            failures = running.run_all(tasks, cores, in_turn=experiment.in_turn, say=say)
        except KeyboardInterrupt:
            print("interrupted; start the same command again to continue", file=sys.stderr)
            return INTERRUPTED

    from tools.experiments.drawing import draw
    from tools.experiments.reporting import Report

    earlier = planned(experiment.rows, max(args.seeds or 0, most))
    results = running.results_of(experiment, earlier)
    started = {task.row.key for task in tasks}
    left_out = [row for row in rows if row.key not in started and not args.show]
    shown = [row for row in experiment.rows if row.key in started or results.of(row.key)]
    if args.show and not shown:
        parser.error(f"there is no finished run of {experiment.name} in {out}; leave --show out, or add --kept")
    report = Report(results, args.scale, shown, extra, failures, left_out, ranks)
    text = report.markdown()
    stem = str(out / experiment.name)
    Path(f"{stem}.md").write_text(text, encoding="utf-8")
    Path(f"{stem}.json").write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    draw(results, shown, Path(f"{stem}.png"), report.title)
    print(text)
    print(f"table, values and curves: {stem}.md, .json, .png", file=sys.stderr)
    return FAILED if failures else 0


def _for_slurm(parser: Parser, what: str, turns: list[list[Task]], *, in_turn: bool) -> int:
    """What jobs/experiment.sbatch asks: which arrays to submit; in a task of one, what to start, or what has ended."""
    if what == "arrays":
        print("\n".join(running.arrays(turns, in_turn=in_turn)))
        return 0
    index = os.environ.get(running.TASK, "")
    if not index.isdigit() or int(index) >= len(turns):
        said = f"the tasks are 0 to {len(turns) - 1}; see jobs/experiment.sbatch"
        parser.error(f"{running.TASK} = {index or 'unset'}: {said}")
    turn = turns[int(index)]
    if what == "words":
        print("\n".join(running.words(turn)))
    else:
        for task in turn:
            task.end()
    return 0


def listing() -> str:
    """Every experiment with its source, and the rows of each group with the scales that run it."""
    lines = []
    for e in EXPERIMENTS.values():
        lines.append(f"{e.name:<20} {e.title} ({e.source})")
        for group in dict.fromkeys(row.group for row in e.rows):
            scales = [s for s in e.scales if group in {row.group for row in e.rows_at(s)}]
            keys = [row.key for row in e.rows if row.group == group]
            lines.append(f"    {', '.join(scales)}: {' '.join(keys)}")
    return "\n".join(lines)


def _known(parser: Parser, what: str, name: str, names: Collection[str]) -> str:
    """The name, or a usage error that suggests the nearest one."""
    if name not in names:
        (close,) = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        parser.error(f"{name!r} is no {what}; did you mean {close}?")
    return name


def _setting(text: str) -> tuple[str, Any]:
    """section.key=VALUE, as on the command line of `hpcsplit train`."""
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise argparse.ArgumentTypeError(f"{text} must be section.key=VALUE")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
