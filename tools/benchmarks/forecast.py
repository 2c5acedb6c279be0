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
import tempfile
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hpcsplit.commands.simulate import problem_of
from hpcsplit.config import Config, resolve
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.methods.contract import Tally
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.simulate.machine import Machine
from hpcsplit.plan.simulate.study import replay
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import Records
from hpcsplit.schedule.actions import Phase, Refresh, Train
from hpcsplit.wire.lockstep import Alone
from hpcsplit.wire.port import Meter, Verb
from tools.program import Start, last_line
from tools.timing.engine import close, jobs_of
from tools.timing.race import raced
from tools.timing.table import options, publish

HERE = Machine(node=8, latency_s=0.0, inside_latency_s=0.0)
COUNTED_RANKS, COUNTED_STEPS, COUNTED_BATCH = (3, 4), 6, 16
PHASES: dict[Phase, tuple[str, str]] = {"serial": ("exact", "exact_s"), "parallel": ("penalty", "parallel_s")}
RANKS, EPOCHS = (1, 2), 6
SECONDS = ("predicted_s", "simulated_s", "measured_s")
Compared = dict[str, float]  # seconds of a step of one kind in one run, by their names in SECONDS
Table = tuple[list[str], list[dict[str, Any]]]  # lines, and values


def timed(args: argparse.Namespace, network: str) -> Table:
    """Predicted, simulated and measured seconds of a step, of runs that take turns."""
    raw = raced(network, args.batch, args.steps, device="cpu")
    raw["data"] |= {"limit_test": args.batch, "eval_train": args.batch}
    raw["schedule"] |= {"microbatches": args.microbatches, "epochs": EPOCHS, "ratio": "1:1"}
    raw["run"] |= {"baseline": True, "evaluate_every": EPOCHS, "threads": 1, "runner": "mpi"}
    config = resolve(raw, (), stem="bench", source="tools/bench")
    torch.set_num_threads(1)
    found: dict[tuple[Phase, int], list[Compared]] = {}
    for _ in range(args.rounds):
        for ranks in RANKS:
            with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as place:
                for phase, compared in one_run(config, ranks, Path(place), args.steps).items():
                    found.setdefault((phase, ranks), []).append(compared)
    line = "{:<26} {:>9} {:>9} {:>9} {:>24} {:>24}"
    lines = [
        f"{network}, batch {args.batch}, float32, {args.microbatches} micro-batches in exact steps, {EPOCHS // 2} "
        f"epochs of {args.steps} steps of each kind in a run, n = {args.rounds} runs",
        line.format("s a step", "predicted", "simulated", "measured", "predicted/measured", "simulated/measured"),
    ]
    rows = []
    for (phase, ranks), runs in found.items():
        label = f"{PHASES[phase][0]}, {ranks} rank{'s' * (ranks != 1)}"
        seconds = [f"{statistics.median(run[name] for run in runs):.4f}" for name in SECONDS]
        shares = [spread([run[name] / run["measured_s"] for run in runs]) for name in SECONDS[:2]]
        lines.append(line.format(label, *seconds, *shares))
        rows.append({"network": network, "phase": phase, "ranks": ranks, "runs": runs})
    return lines, rows


def one_run(config: Config, ranks: int, place: Path, steps: int) -> dict[Phase, Compared]:
    """`hpcsplit train`: what it wrote down before it began, the same simulated, and what it did."""
    toml, run_dir = place / "bench.toml", place / "run"
    toml.write_text(config.to_toml(origins=False), encoding="utf-8")
    words = ["-m", "hpcsplit", "train", toml, "--run-dir", run_dir]
    run = Start(words, ranks, str(place), place / "out")
    if run.end().code:
        raise SystemExit(f"a run of {ranks} ranks failed: {last_line(run.said())}")
    expected = json.loads((run_dir / "forecast.json").read_text(encoding="utf-8"))
    problem, records = problem_of(Setting(config), run_dir / "forecast.json"), Records(RunDir(run_dir).records).load()
    found = {}
    for phase, (_, key) in PHASES.items():
        course = replay(problem, expected["cuts"], HERE, Train(0, phase, 0), steps)
        measured = statistics.median(record.train_s or 0.0 for record in records if record.phase == phase)
        times = expected["forecast"][key], course.length_s / steps, measured / steps
        found[phase] = dict(zip(SECONDS, times, strict=True))
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def counted(network: str, microbatches: int) -> Table:
    """Messages and bytes of each rank, simulated and in lockstep."""
    raw = raced(network, COUNTED_BATCH, COUNTED_STEPS, device="cpu", runner="lockstep")
    raw["schedule"]["microbatches"] = microbatches
    raw["split"]["cuts"] = "flops"
    config, lines, rows = resolve(raw, (), stem="bench", source="tools/bench"), [], []
    problem = problem_of(Setting(config))
    for ranks in COUNTED_RANKS:
        for phase in PHASES:
            with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as place:
                run_dir, world = RunDir(Path(place) / "run"), Alone(ranks)
                jobs = jobs_of(world, config, run_dir, torch.device("cpu"))
                real = world.run([epoch_sent(job, phase) for job in jobs])
                close(jobs)
                run_dir.release()
            course = replay(problem, jobs[0].identity.cuts, HERE, Train(0, phase, 0), COUNTED_STEPS)
            ours = [(t.messages, t.sent_bytes_prev + t.sent_bytes_next) for t in course.traffic]
            same = "the same" if ours == real else f"simulated {ours}"
            lines.append(f"{ranks} ranks, {phase:<8} messages and bytes of {COUNTED_STEPS} steps: {real}: {same}")
            rows.append({"ranks": ranks, "phase": phase, "lockstep": real, "simulated": ours})
    return lines, rows


def epoch_sent(job: Job, phase: Phase) -> Generator[Verb, Any, tuple[int, int]]:
    """Messages and bytes that a rank sends in an epoch."""
    if phase == "parallel":
        yield from refresh(job, Refresh(0), None)
    before = asdict((yield Meter()))
    yield from train_epoch(job, Train(0, phase, 0), Tally())
    sent = {key: value - before[key] for key, value in asdict((yield Meter())).items()}
    return sent["messages"], sent["sent_bytes_prev"] + sent["sent_bytes_next"]


def main() -> None:
    args = options(
        __doc__,
        "forecast",
        networks="resnet20,resnet56",
        batch=(128, "samples of a mini-batch"),
        steps=(8, "of an epoch"),
        rounds=(3, "runs with each number of ranks"),
        microbatches=(4, "of an exact step"),
    )
    networks = args.networks.split(",")
    tables = [*(timed(args, network) for network in networks), counted(networks[0], args.microbatches)]
    lines, values = ([each for part in parts for each in part] for parts in zip(*tables, strict=True))
    publish(args.out, "forecast", lines, values)
