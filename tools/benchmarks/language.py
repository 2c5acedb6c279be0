"""A transformer on text: delayed gradients in two stages beside exact training on one core, after as many steps.

    tools/bench language [--network gpt-6-128] [--megabytes 1] [--context 128] [--batch 32] [--epochs 1] [--seeds 3]

The text is the first megabytes of Python's own library, file after file; a token is a byte, and the last tenth is the
test part.  Each seed trains four times: exactly on one core, with delayed gradients on two (as they are, and with
weight prediction), and the frozen control of these.  Loss is the test part's, in nats a token; speed is that of
training alone, the median over the epochs of all seeds.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from hpcsplit.run.records import EpochRecord, Records
from tools.program import Start, last_line, merged, write_toml
from tools.timing import table

WAYS: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {  # what the table calls it: ranks, settings
    "exact, one core": (1, {"method": {"name": "backprop"}}),
    "delayed gradients": (2, {"method": {"name": "delayed"}}),
    "delayed gradients, predicted weights": (2, {"method": {"name": "delayed", "predict": True}}),
    "delayed gradients, frozen control": (2, {"method": {"name": "delayed", "frozen": True}}),
}


def write_text(path: Path, size: int) -> None:
    """So many bytes of Python's library."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    path.write_bytes(b"".join(file.read_bytes() for file in files)[:size])


def trained(out: Path, name: str, seed: int, ranks: int, settings: dict[str, dict[str, Any]]) -> EpochRecord:
    """The last record of a run, which is made where it is not there."""
    run = out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    toml = write_toml(out / f"{run.name}.toml", settings)
    ended = Start(["-m", "hpcsplit", "train", toml, "--run-dir", run], ranks, str(run), out / "said.txt").end()
    if ended.code:
        raise SystemExit(last_line((out / "said.txt").read_text()))
    return Records(run / "records.jsonl").load()[-1]


def main() -> None:
    o = table.options(
        __doc__, "language", network="gpt-6-128", megabytes=1.0, context=128, batch=32, epochs=1, seeds=3, lr=1e-3
    )
    o.out.mkdir(parents=True, exist_ok=True)
    write_text(o.out / "text.txt", round(1e6 * o.megabytes))
    common: dict[str, dict[str, Any]] = {
        "data": {"name": "text", "root": str(o.out / "text.txt"), "context": o.context, "batch_size": o.batch},
        "model": {"name": o.network, "task": "language"},
        "split": {"cuts": "flops"},
        "schedule": {"epochs": o.epochs, "ratio": "0:1", "warmup": 0},
        "optim": {"name": "adamw", "lr": o.lr, "lr_warmup": 0.1, "lr_steps": "step"},
        "run": {"baseline": False, "threads": 1},
    }
    records: dict[str, list[EpochRecord]] = {name: [] for name in WAYS}
    for seed in range(o.seeds):  # the ways take turns
        for name, (ranks, own) in WAYS.items():
            settings = merged(common, own, {"run": {"seed": seed}})
            records[name].append(trained(o.out, name, seed, ranks, settings))
    lines = [
        f"{o.network}, {o.megabytes:g} MB of text, {o.epochs} epochs, mini-batches of {o.batch} x {o.context} tokens, "
        f"n = {o.seeds} seeds",
        "| | ranks | test loss, nats | over exact | samples/s | x exact |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    exact, values = records["exact, one core"], {}
    for name, mine in records.items():
        losses, speeds = [r.test_loss or 0.0 for r in mine], [r.samples_per_s or 0.0 for r in mine]
        gaps = [loss - (rival.test_loss or 0.0) for loss, rival in zip(losses, exact, strict=True)]
        times = statistics.median(s / (rival.samples_per_s or 1.0) for s, rival in zip(speeds, exact, strict=True))
        spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
        lines.append(
            f"| {name} | {WAYS[name][0]} | {statistics.mean(losses):.3f}{spread} | {statistics.mean(gaps):+.3f} "
            f"({min(gaps):+.3f} to {max(gaps):+.3f}) | {statistics.median(speeds):.1f} | {times:.2f} |"
        )
        values[name] = {"test_loss": losses, "samples_per_s": speeds}
    table.publish(o.out, "language", lines, values)
