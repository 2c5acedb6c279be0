"""Seconds of a step that a run has written down before it began, and `simulate` has made of that, beside its own.

    tools/bench forecast [--networks resnet20,resnet56] [--rounds 3] [--steps 8] [--microbatches 4]

Each run is `hpcsplit train` from the command line over MPI with its store, 1 or 2 ranks with a thread each; its
seconds are those of the median epoch of each kind.  Simulated: the same epochs, with the run's profile and links
without latency inside one node.  A ratio is the median of the runs', with the smallest and the largest.  With 3 and 4
ranks, more than two cores have room for, messages and bytes are compared with those of a run in lockstep instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcsplit.host.memory import keep_freed_memory

keep_freed_memory()  # before torch

import torch  # noqa: E402

from hpcsplit.assemble import make_jobs  # noqa: E402
from hpcsplit.commands.simulate import problem_of  # noqa: E402
from hpcsplit.config import Config, resolve  # noqa: E402
from hpcsplit.engine.epochs import train_epoch  # noqa: E402
from hpcsplit.engine.forward import refresh  # noqa: E402
from hpcsplit.engine.job import Job  # noqa: E402
from hpcsplit.methods.contract import Tally  # noqa: E402
from hpcsplit.plan.prepare import prepare  # noqa: E402
from hpcsplit.plan.setting import Setting  # noqa: E402
from hpcsplit.plan.simulate.machine import Machine  # noqa: E402
from hpcsplit.plan.simulate.study import replay  # noqa: E402
from hpcsplit.run.folder import RunDir  # noqa: E402
from hpcsplit.run.records import Records  # noqa: E402
from hpcsplit.schedule.actions import Phase, Refresh, Train  # noqa: E402
from hpcsplit.wire import lockstep  # noqa: E402
from hpcsplit.wire.port import Meter, Verb  # noqa: E402
from tools.program import ROOT, last_line, launch  # noqa: E402
from tools.timing.race import raced  # noqa: E402
from tools.timing.table import publish  # noqa: E402

HERE = Machine(node=8, latency_s=0.0, inside_latency_s=0.0)
COUNTED_RANKS, COUNTED_STEPS, COUNTED_BATCH = (3, 4), 6, 16
PHASES: tuple[Phase, ...] = ("serial", "parallel")
LABELS = {"serial": "exact", "parallel": "penalty"}
RANKS, EPOCHS = (1, 2), 6
SECONDS = ("predicted_s", "simulated_s", "measured_s")


@dataclass(frozen=True)
class Compared:
    """Seconds of a step of one kind in one run."""

    predicted_s: float
    simulated_s: float
    measured_s: float


def timed(args: argparse.Namespace, network: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Predicted, simulated and measured seconds of a step, of runs that take turns."""
    raw = raced(network, args.batch, args.steps, device="cpu")
    raw["data"] |= {"limit_test": args.batch, "eval_train": args.batch}
    raw["schedule"] |= {"microbatches": args.microbatches, "epochs": EPOCHS, "ratio": "1:1"}
    raw["run"] |= {"baseline": True, "evaluate_every": EPOCHS, "threads": 1, "runner": "mpi"}
    config = resolve(raw, (), stem="bench", source="tools/bench")
    torch.set_num_threads(1)
    found: dict[tuple[str, int], list[Compared]] = {}
    for _ in range(args.rounds):
        for ranks in RANKS:
            with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as place:
                for phase, compared in one_run(config, ranks, Path(place), args.steps).items():
                    found.setdefault((phase, ranks), []).append(compared)
    lines = [
        f"{network}, batch {args.batch}, float32, {args.microbatches} micro-batches in exact steps, {EPOCHS // 2} "
        f"epochs of {args.steps} steps of each kind in a run, n = {args.rounds} runs",
        f"{'s a step':<26} {'predicted':>9} {'simulated':>9} {'measured':>9} {'predicted/measured':>24} "
        f"{'simulated/measured':>24}",
    ]
    rows = []
    for (phase, ranks), runs in found.items():
        label = f"{LABELS[phase]}, {ranks} rank{'s' * (ranks != 1)}"
        seconds = [statistics.median(getattr(run, name) for run in runs) for name in SECONDS]
        shares = [spread([getattr(run, name) / run.measured_s for run in runs]) for name in SECONDS[:2]]
        lines.append(f"{label:<26} " + " ".join(f"{s:>9.4f}" for s in seconds) + "".join(f" {s:>24}" for s in shares))
        rows.append({"network": network, "phase": phase, "ranks": ranks, "runs": [vars(run) for run in runs]})
    return lines, rows


def one_run(config: Config, ranks: int, place: Path, steps: int) -> dict[str, Compared]:
    """`hpcsplit train`: what it wrote down before it began, the same simulated, and what it did."""
    toml, run_dir = place / "bench.toml", place / "run"
    toml.write_text(config.to_toml(origins=False), encoding="utf-8")
    words = ["-m", "hpcsplit", "train", str(toml), "--run-dir", str(run_dir)]
    with (place / "out").open("wb") as out:
        program = launch(words, ranks, "bench-forecast", out, out, {})
        if program.wait():
            raise SystemExit(f"a run of {ranks} ranks failed: {last_line((place / 'out').read_text(errors='replace'))}")
    expected = json.loads((run_dir / "forecast.json").read_text(encoding="utf-8"))
    problem, records = problem_of(Setting(config), run_dir / "forecast.json"), Records(RunDir(run_dir).records).load()
    found = {}
    for phase, key in (("serial", "exact_s"), ("parallel", "parallel_s")):
        course = replay(problem, expected["cuts"], HERE, [Train(0, phase, 0)], phase, steps)  # type: ignore[arg-type]
        seconds = [record.train_s or 0.0 for record in records if record.phase == phase]
        measured = statistics.median(seconds) / steps
        found[phase] = Compared(expected["forecast"][key], course.length_s / steps, measured)
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def counted(network: str, microbatches: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Messages and bytes of each rank, simulated and in lockstep."""
    raw = raced(network, COUNTED_BATCH, COUNTED_STEPS, device="cpu", runner="lockstep")
    raw["schedule"]["microbatches"] = microbatches
    raw["split"]["cuts"] = "flops"
    config, lines, rows = resolve(raw, (), stem="bench", source="tools/bench"), [], []
    problem = problem_of(Setting(config))
    for ranks in COUNTED_RANKS:
        for phase in PHASES:
            with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as place:
                real, cuts = in_lockstep(config, ranks, phase, Path(place))
            course = replay(problem, cuts, HERE, [Train(0, phase, 0)], phase, COUNTED_STEPS)
            ours = [(t.messages, t.sent_bytes_prev + t.sent_bytes_next) for t in course.traffic]
            same = "the same" if ours == real else f"simulated {ours}"
            lines.append(f"{ranks} ranks, {phase:<8} messages and bytes of {COUNTED_STEPS} steps: {real}: {same}")
            rows.append({"ranks": ranks, "phase": phase, "lockstep": real, "simulated": ours})
    return lines, rows


def in_lockstep(config: Config, ranks: int, phase: Phase, place: Path) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    run_dir, cpu = RunDir(place / "run"), torch.device("cpu")
    setting = Setting(config)
    prepared = prepare(setting, run_dir, ranks, cpu)
    jobs = make_jobs(setting, prepared, run_dir, range(ranks), cpu)
    found = lockstep.run([epoch_sent(job, phase) for job in jobs])
    for job in jobs:
        if job.store:
            job.store.close()
    run_dir.release()
    return found, prepared.cuts


def epoch_sent(job: Job, phase: Phase) -> Generator[Verb, Any, tuple[int, int]]:
    """Messages and bytes that a rank sends in an epoch."""
    if phase == "parallel":
        yield from refresh(job, Refresh(0), None)
    totals = []
    for part in (None, Train(0, phase, 0)):
        if part:
            yield from train_epoch(job, part, Tally())
        traffic = yield Meter()
        totals.append((traffic.messages, traffic.sent_bytes_prev + traffic.sent_bytes_next))
    return totals[1][0] - totals[0][0], totals[1][1] - totals[0][1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet20,resnet56")
    parser.add_argument("--batch", type=int, default=128, help="samples of a mini-batch")
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=3, help="runs with each number of ranks")
    parser.add_argument("--microbatches", type=int, default=4, help="of an exact step")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-forecast")
    args = parser.parse_args()
    lines, values = [], []
    for network in args.networks.split(","):
        text, rows = timed(args, network)
        lines, values = [*lines, *text], [*values, *rows]
    text, rows = counted(args.networks.split(",")[0], args.microbatches)
    publish(args.out, "forecast", [*lines, *text], [*values, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
