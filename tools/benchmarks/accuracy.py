"""Accuracy of the hybrid beside what a user would otherwise run in the same time, on the same two ranks.

Rows: the hybrid with each method; the hybrid with the first stage frozen in parallel epochs; exact back-propagation
(pipelined) for as many epochs; and exact back-propagation with as many epochs as fit into the training and refresh time
of the first hybrid, its learning-rate schedule fitted to that.  A run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

from hpcsplit.config import resolve
from hpcsplit.config.declared import declared_methods
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import EpochRecord, Records
from tools.program import ROOT, mpirun
from tools.timing.table import publish


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="jobs/fashion_resnet20.toml")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--limit-train", type=int, default=0, help="training samples; 0 is all")
    parser.add_argument("--methods", default="penalty,al")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row, with seeds 0, 1, ...")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-accuracy")
    args = parser.parse_args()

    rows: dict[str, list[list[EpochRecord]]] = {}
    for seed in range(args.seeds):
        methods = args.methods.split(",")
        for method in methods:
            rows.setdefault(f"hybrid, {method}", []).append(run(args, seed, method, args.epochs))
        rows.setdefault("hybrid, frozen control", []).append(run(args, seed, methods[0], args.epochs, frozen=True))
        rows.setdefault("exact, as many epochs", []).append(exact := run(args, seed, "backprop", args.epochs))
        budget_s = seconds(rows[f"hybrid, {methods[0]}"][-1], exact)
        affordable = max(1, round(budget_s / epoch_seconds(exact, "serial")))
        label = "exact, stopped at the hybrid's time"
        rows.setdefault(label, []).append(run(args, seed, "backprop", affordable))
    report(args, rows)
    return 0


def run(args: argparse.Namespace, seed: int, method: str, epochs: int, *, frozen: bool = False) -> list[EpochRecord]:
    """The records of one run with two ranks; finished runs are not repeated."""
    name = f"{method}{'-frozen' if frozen else ''}-{epochs}-{args.limit_train}-{seed}"
    folder = args.out / name
    command = [mpirun(), "-n", "2", sys.executable, "-m", "hpcsplit", "train", config_for(args, method)]
    command += ["--run-dir", str(folder)]
    command += ["--schedule.epochs", str(epochs), "--run.seed", str(seed), "--data.limit_train", str(args.limit_train)]
    command += ["--run.baseline", "false", "--split.cuts", "flops"]
    command += ["--method.frozen", "true"] if frozen else []
    print(f"--- {name}", flush=True)
    subprocess.run(command, cwd=ROOT, check=True)
    return Records(RunDir(folder).records).load()


def config_for(args: argparse.Namespace, method: str) -> str:
    """The configuration with another method; of the method's keys those that it knows are kept."""
    raw = tomllib.loads((ROOT / args.config).read_text(encoding="utf-8"))
    known = {option.name for option in declared_methods()[method].options}
    raw["method"] = {key: v for key, v in raw.get("method", {}).items() if key in known} | {"name": method}
    path = args.out / f"{Path(args.config).stem}-{method}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(resolve(raw).to_toml(origins=False), encoding="utf-8")
    return str(path)


def epoch_seconds(records: list[EpochRecord], phase: str) -> float:
    """Median training time of the epochs of one kind: a shared machine slows some of them down."""
    return statistics.median(r.train_s for r in records if r.phase == phase)


def seconds(records: list[EpochRecord], exact: list[EpochRecord]) -> float:
    """Training and refresh of a run at the median speed of each kind of epoch; serial epochs are those of `exact`."""
    parallel = [r for r in records if r.phase == "parallel"]
    serial_s = (len(records) - len(parallel)) * epoch_seconds(exact, "serial")
    parallel_s = len(parallel) * epoch_seconds(parallel, "parallel") if parallel else 0.0
    return serial_s + parallel_s + sum(r.refresh_s or 0.0 for r in records)


def report(args: argparse.Namespace, rows: dict[str, list[list[EpochRecord]]]) -> None:
    """The table on the screen, and in accuracy.json."""

    def last(records: list[EpochRecord]) -> float:
        return 100 * records[-1].test_accuracy

    controls = rows["exact, as many epochs"]
    exact = statistics.mean(last(r) for r in controls)
    table = []
    for name, runs in rows.items():
        accuracies = [last(r) for r in runs]
        parallel = [e.stages[0].label_signal for e in runs[0] if e.phase == "parallel"]
        table.append(
            {
                "run": name,
                "n": len(runs),
                "epochs": len(runs[0]),
                "parallel": len(parallel),
                "seconds": statistics.median(map(seconds, runs, controls)),
                "test_accuracy": statistics.mean(accuracies),
                "spread": statistics.stdev(accuracies) if len(runs) > 1 else None,
                "gap_points": statistics.mean(accuracies) - exact,
                "label_signal": statistics.mean(parallel) if parallel else None,
            }
        )
    columns = ("n", "epochs", "parallel", "train+refresh s", "test %", "sd", "gap", "signal")
    lines = [f"{'run':<38}" + "".join(f" {name:>{max(6, len(name))}}" for name in columns)]
    for row in table:
        spread = "-" if row["spread"] is None else f"{row['spread']:.2f}"
        signal = "-" if row["label_signal"] is None else f"{row['label_signal']:.2f}"
        lines.append(
            f"{row['run']:<38} {row['n']:>6} {row['epochs']:>6} {row['parallel']:>8} {row['seconds']:>15.1f} "
            f"{row['test_accuracy']:>6.2f} {spread:>6} {row['gap_points']:>+6.2f} {signal:>6}"
        )
    lines.append("gap: points to exact with as many epochs")
    lines.append("signal: cosine with the exact gradient at stage 0's output, mean of the parallel epochs")
    about = {"config": args.config, "training samples": args.limit_train or "all", "ranks": 2}
    publish(args.out, "accuracy", lines, table, **about)


if __name__ == "__main__":
    raise SystemExit(main())
