"""What a parallel step costs as the problem grows: samples, mini-batch, boundary, stages; and a rank's memory.

    tools/bench scale [--rounds 3]

Every row is one start of the program's own epochs with the HDF5 store, penalty method; a turn is one epoch of the given
steps, and all rows of a group take turns.  Memory is RssAnon of the largest rank after its last turn (mapped file pages
do not count), without the images and labels that it holds.  With more stages than cores, seconds are CPU seconds of all
ranks together, in which they wait for each other, too.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcsplit.config import load
from tools.program import Sections, merged, write_toml
from tools.timing.table import options, publish
from tools.timing.turns import Contender, peer, play

BASE: Sections = {
    "data": {"name": "fake", "augment": False},
    "method": {"name": "penalty"},
    "schedule": {"epochs": 1000},
    "store": {"kind": "hdf5"},
    "optim": {"lr": 0.001},
    "run": {"threads": 1, "device": "cpu", "baseline": False},
}
MLP: Sections = {"model": {"name": "mlp", "width": 512, "depth": 5}, "split": {"cuts": [2]}}
RESNET: Sections = {"model": {"name": "resnet8"}, "split": {"cuts": [2]}}


def samples(count: int) -> Sections:
    return {"data": {"limit_train": count, "batch_size": 128}}


# group: {row: (settings, stages)}
GROUPS: dict[str, dict[str, tuple[list[Sections], int]]] = {
    "samples (mlp, 512 wide)": {f"{n:>7,}": ([MLP, samples(n)], 2) for n in (10_000, 30_000, 100_000)},
    "mini-batch (resnet8)": {
        f"{b:>7}": ([RESNET, {"data": {"limit_train": 512, "batch_size": b}}], 2) for b in (32, 64, 128, 256)
    },
    "boundary, floats a sample (resnet8)": {
        "  4,096": ([RESNET, samples(512), {"method": {"downsample": 2}}], 2),
        " 16,384": ([RESNET, samples(512)], 2),
        "  8,192": ([RESNET, samples(512), {"split": {"cuts": [3]}}], 2),
    },
    "stages (resnet14, CPU seconds of all)": {
        f"{k:>7}": ([{"model": {"name": "resnet14"}, "split": {"cuts": cuts}}, samples(512)], k)
        for k, cuts in ((1, []), (2, [3]), (3, [2, 4]), (4, [2, 4, 6]))
    },
}


def main() -> None:
    args = options(__doc__, "scale", rounds=3, only=("", "the first word of groups, with commas"))
    lines, values = [f"{'':<42} {'ms a step':>10} {'us a sample':>12} {'MiB':>7}"], []
    for group, rows in GROUPS.items():
        if not args.only or group.split()[0].rstrip(",") in args.only.split(","):
            found = measured(group, rows, args.rounds)
            lines += [group, *map(line, found)]
            values += found
    publish(args.out, "scale", [*lines, f"medians, n = {args.rounds}"], values)


def measured(group: str, rows: Mapping[str, tuple[list[Sections], int]], rounds: int) -> list[dict[str, Any]]:
    """Play the rows of one group against each other."""
    with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as name:
        players, batches = [], []
        for number, (settings, stages) in enumerate(rows.values()):
            path = write_toml(Path(name) / f"row-{number}.toml", merged(BASE, *settings))
            players.append(Contender(f"row-{number}", [peer("ours", "parallel", path, stages)]))
            batches.append(load(path).data.batch_size)
        play(players, rounds, Path(name) / "play")
    found: list[dict[str, Any]] = []
    for label, player, batch in zip(rows, players, batches, strict=True):
        row: dict[str, Any] = {"group": group, "label": label, "failure": player.failure}
        if not player.failure:
            key = "cpu_s" if "CPU" in group else "seconds"
            gather = sum if "CPU" in group else max
            times = [gather(note[key] for note in notes) for notes in player.notes]
            memory = max(note["rss_anon"] - note["data_bytes"] for note in player.notes[-1]) / 2**20
            row |= {"n": len(times), "step_s": statistics.median(times), "seconds": times}
            row |= {"sample_s": row["step_s"] / batch, "mib": memory}
        found.append(row)
    return found


def line(row: Mapping[str, Any]) -> str:
    if row["failure"]:
        return f"  {row['label']:<40} FAILED {row['failure']}"
    return f"  {row['label']:<40} {1e3 * row['step_s']:>10.1f} {1e6 * row['sample_s']:>12.1f} {row['mib']:>7.0f}"
