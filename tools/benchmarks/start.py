"""How long it takes until something happens: --help, the imports, and the start of a run of two ranks.

    tools/bench start [--rounds 5]

Medians of wall seconds, in turns; the files are in the page cache.  "to the first step" is from the start of mpirun to
the end of the first epoch, one step long, of a small network on random images.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tools.program import Sections, Start, kill, marked, text, write_toml
from tools.timing.table import options, publish, ratio

RANKS = 2
LIMIT_S = 120.0
CONFIG: Sections = {
    "data": {"name": "fake", "batch_size": 64, "limit_train": 64, "augment": False},
    "model": {"name": "mlp", "width": 32, "depth": 3},
    "method": {"name": "penalty"},
    "schedule": {"epochs": 1, "ratio": "1:0"},
    "run": {"baseline": False, "threads": 1},
    "split": {"cuts": "flops"},
}
IMPORTS = "import torch, h5py; from mpi4py import MPI"
# label: (words for Python, ranks, the row that it is compared with)
ROWS: dict[str, tuple[list[str], int, str]] = {
    "python -c pass": (["-c", "pass"], 1, ""),
    "python -m hpcsplit --help": (["-m", "hpcsplit", "--help"], 1, "python -c pass"),
    "python -m hpcsplit train --help": (["-m", "hpcsplit", "train", "--help"], 1, "python -c pass"),
    "2 ranks import torch, h5py, mpi4py": (["-c", IMPORTS], RANKS, ""),
}
FIRST_STEP = "2 ranks train, to the first step"


def main() -> None:
    args = options(__doc__, "start", rounds=5)
    seconds: dict[str, list[float]] = {label: [] for label in [*ROWS, FIRST_STEP]}
    with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as name:
        folder = Path(name)
        toml = write_toml(folder / "start.toml", CONFIG)
        try:
            for number in range(-1, args.rounds):  # round -1 warms the page cache
                for label, (words, ranks, _) in ROWS.items():
                    seconds[label].append(measured(words, ranks, folder))
                run_dir = folder / f"run-{number}"
                words = ["-m", "hpcsplit", "train", str(toml), "--run-dir", str(run_dir)]
                seconds[FIRST_STEP].append(measured(words, RANKS, folder, run_dir / "records.jsonl"))
        except subprocess.TimeoutExpired as error:
            raise SystemExit(f"tools/bench start: no end in {LIMIT_S:.0f} s: {error.cmd}") from None
        finally:
            kill(marked(name))
    lines = [f"{'':<40} {'s':>7} {'min':>7} {'max':>7}  over"]
    rivals = {label: rival for label, (_, _, rival) in ROWS.items()} | {FIRST_STEP: list(ROWS)[-1]}
    values = []
    for label, (_, *times) in seconds.items():
        row = {"label": label, "n": len(times), "median_s": statistics.median(times), "seconds": times}
        line = f"{label:<40} {row['median_s']:>7.3f} {min(times):>7.3f} {max(times):>7.3f}"
        if rival := rivals[label]:
            row["ratio"] = ratio(times, seconds[rival][1:])
            line += f"  {row['ratio']:.2f} x {rival}"
        lines.append(line)
        values.append(row)
    lines.append(f"n = {args.rounds}")
    publish(args.out, "start", lines, values)


def measured(words: list[str], ranks: int, folder: Path, records: Path | None = None) -> float:
    """Seconds until a start has ended, or until it has written into `records`."""
    said, began = folder / "said", time.perf_counter()
    process = Start(words, ranks, str(folder), said).process
    while records and not (records.exists() and records.stat().st_size):
        if time.perf_counter() - began > LIMIT_S:
            raise SystemExit(f"tools/bench start: no first step in {LIMIT_S:.0f} s")
        time.sleep(0.002)
    seconds = time.perf_counter() - began
    if code := process.wait(LIMIT_S):
        raise SystemExit(f"tools/bench start: {' '.join(words)} ended with {code}: {text(said)[-500:]}")
    return seconds if records else time.perf_counter() - began
