"""Seconds of one training step on two cores: hpcsplit beside what a user would otherwise take.

    tools/bench step [--networks resnet56,resnet110,wrn16-4] [--rounds 5] [--steps 4]

Every contender trains the same network with the same mini-batch, precision, memory format and optimizer, on two cores
where it is not said to be one.  All are started first and then take turns, `--rounds` times, so that a slow minute of
the machine strikes all.  A turn is `--steps` steps; hpcsplit's is a whole epoch of that many, with the reading and
writing of rows, messages, and the first and last steps that nothing overlaps.  The images are random; a contender that
fails or hangs is listed with what it said.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hpcsplit.assemble import build_network
from hpcsplit.config import Config, resolve
from hpcsplit.prepare import choose_cuts
from hpcsplit.split.cuts import ranges
from tools.benchmarks.table import facts, written
from tools.benchmarks.turns import Contender, play
from tools.program import ROOT

RANKS = 2
LIMIT_S = 300.0
PEERS = "tools.benchmarks.peers"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet56,resnet110,wrn16-4")
    parser.add_argument("--batch", type=int, default=128, help="samples of a mini-batch")
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--only", default="", help="names of contenders, with commas")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-step")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no contender outlives it
    tables = [measured(args, network) for network in args.networks.split(",")]
    written(args.out / "step.json", {"facts": facts(), "tables": tables})
    return 0


def measured(args: argparse.Namespace, network: str) -> dict[str, Any]:
    """Play all rounds with one network, and print its table."""
    config, balance = config_for(args, network)
    with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as name:
        folder = Path(name)
        (folder / "bench.toml").write_text(config.to_toml(origins=False), encoding="utf-8")
        wanted = args.only.split(",") if args.only else []
        players = [c for c in contenders(folder / "bench.toml", args.steps) if not wanted or c.name in wanted]
        play(players, args.rounds, folder / "play", limit_s=LIMIT_S)
    rows = [row(each, players) for each in players]
    title = f"{network}, batch {args.batch}, cut {list(config.split.cuts)} (balance allows {balance:.2f})"
    print(f"\n{title}, n = {args.rounds}")
    print(f"{'':<42} {'s a step':>9} {'min':>7} {'max':>7} {'over one core':>13} {'of the limit':>12}")
    for each in rows:
        print(line(each))
    return {"network": network, "batch": args.batch, "balance": balance, "cuts": list(config.split.cuts), "rows": rows}


def config_for(args: argparse.Namespace, network: str) -> tuple[Config, float]:
    """Two stages, cut where the measured times of the blocks balance best; the speed-up that this balance allows."""

    def make(cuts: str | list[int]) -> Config:
        raw: dict[str, dict[str, Any]] = {
            "data": {
                "name": "fake",
                "limit_train": args.batch * args.steps,
                "batch_size": args.batch,
                "augment": False,
            },
            "model": {"name": network},
            "split": {"cuts": cuts},
            "method": {"name": "penalty"},
            "schedule": {"epochs": 1000, "microbatches": args.microbatches},
            "run": {"threads": 1, "device": "cpu", "baseline": False},
        }
        return resolve(raw, (), stem="bench", source="tools/bench")

    config = make("time")
    torch.set_num_threads(1)
    cuts, costs = choose_cuts(config, build_network(config), RANKS, measure=True)
    slowest = max(sum(costs[i] for i in part) for part in ranges(cuts, len(costs)))
    return make(list(cuts)), sum(costs) / slowest


def contenders(config: Path, steps: int) -> list[Contender]:
    """All of them; the label of each is in LABELS."""

    def words(module: str, kind: str, *more: str) -> list[str]:
        return ["-m", f"{PEERS}.{module}", kind, "--config", str(config), "--steps", str(steps), *more]

    def gloo(kind: str) -> Contender:
        return Contender(kind, [(words("torch_distributed", kind, "--rank", str(rank)), 1) for rank in range(RANKS)])

    return [
        Contender("one", [(words("whole", "one"), 1)]),
        Contender("copies", [(words("whole", "one"), 1)] * RANKS),
        Contender("two", [(words("whole", "two"), 1)]),
        gloo("ddp"),
        gloo("gpipe"),
        gloo("1f1b"),
        Contender("exact", [(words("ours", "exact"), RANKS)]),
        Contender("parallel", [(words("ours", "parallel"), RANKS)]),
    ]


LABELS = {
    "one": "one core, whole network",
    "copies": "two copies of it at once: the limit",
    "two": "one process, two threads",
    "ddp": "DistributedDataParallel, gloo",
    "gpipe": "torch.distributed.pipelining, GPipe",
    "1f1b": "torch.distributed.pipelining, 1F1B",
    "exact": "hpcsplit, exact epoch, pipelined",
    "parallel": "hpcsplit, parallel epoch",
}


def row(contender: Contender, everyone: Sequence[Contender]) -> dict[str, Any]:
    """Medians of a contender, and ratios of the same round: steps of one core in the time of one of its own."""
    by_name = {each.name: each for each in everyone}
    found: dict[str, Any] = {"name": contender.name, "label": LABELS[contender.name], "failure": contender.failure}
    if contender.failure:
        return found
    mine = contender.seconds()
    found |= {"n": len(mine), "median_s": statistics.median(mine), "min_s": min(mine), "max_s": max(mine)}
    per_step = 1 / RANKS if contender.name == "copies" else 1.0  # two copies make two steps at once
    for name, key, share in (("one", "over_one_core", 1.0), ("copies", "of_the_limit", 1 / RANKS)):
        rival = by_name.get(name)
        if rival and not rival.failure:
            found[key] = statistics.median(
                share * theirs / (per_step * own) for theirs, own in zip(rival.seconds(), mine, strict=True)
            )
    for key in ("exposed_s", "imbalance_s", "io_s"):
        if key in contender.notes[0][0]:
            found[key] = [
                statistics.median(notes[rank][key] for notes in contender.notes) for rank in range(contender.processes)
            ]
    return found


def line(found: dict[str, Any]) -> str:
    if found["failure"]:
        return f"{found['label']:<42} FAILED {found['failure']}"
    ratios = [f"{found[key]:.2f}" if key in found else "-" for key in ("over_one_core", "of_the_limit")]
    text = (
        f"{found['label']:<42} {found['median_s']:>9.3f} {found['min_s']:>7.3f} {found['max_s']:>7.3f} "
        f"{ratios[0]:>13} {ratios[1]:>12}"
    )
    if "exposed_s" in found:
        for rank, parts in enumerate(zip(found["exposed_s"], found["io_s"], found["imbalance_s"], strict=True)):
            exposed, io, imbalance = (100 * part / found["median_s"] for part in parts)
            text += (
                f"\n    stage {rank}: exposed messages {exposed:.1f} %, store {io:.1f} %, imbalance {imbalance:.1f} %"
            )
    return text


if __name__ == "__main__":
    sys.exit(main())
