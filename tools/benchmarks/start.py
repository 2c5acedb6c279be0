"""How long it takes until something happens: --help, the imports, and the start of a run of two ranks.

    tools/bench start [--rounds 5]

Medians of wall seconds, in turns; the files are in the page cache.  "to the first step" is from the start of mpirun to
the end of the first epoch, one step long, of a small network on random images.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tools.program import ROOT, kill, launch, marked
from tools.timing.table import publish

RANKS = 2
LIMIT_S = 120.0
CONFIG = """
data = { name = "fake", batch_size = 64, limit_train = 64, augment = false }
model = { name = "mlp", width = 32, depth = 3 }
method = { name = "penalty" }
schedule = { epochs = 1, ratio = "1:0" }
run = { baseline = false, threads = 1 }
split = { cuts = "flops" }
"""
IMPORTS = "import torch, h5py; from mpi4py import MPI"
# label: (words for Python, ranks, the row that it is compared with)
ROWS: dict[str, tuple[list[str], int, str]] = {
    "python -c pass": (["-c", "pass"], 1, ""),
    "python -m hpcsplit --help": (["-m", "hpcsplit", "--help"], 1, "python -c pass"),
    "python -m hpcsplit train --help": (["-m", "hpcsplit", "train", "--help"], 1, "python -c pass"),
    "2 ranks import torch, h5py, mpi4py": (["-c", IMPORTS], RANKS, ""),
}
FIRST_STEP = "2 ranks train, to the first step"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-start")
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {label: [] for label in [*ROWS, FIRST_STEP]}
    with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as name:
        folder = Path(name)
        (folder / "start.toml").write_text(CONFIG, encoding="utf-8")
        try:
            for number in range(-1, args.rounds):  # round -1 warms the page cache
                for label, (words, ranks, _) in ROWS.items():
                    seconds[label].append(ended(words, ranks, folder))
                seconds[FIRST_STEP].append(first_step(folder, number))
        except subprocess.TimeoutExpired as error:
            raise SystemExit(f"tools/bench start: no end in {LIMIT_S:.0f} s: {error.cmd}") from None
        finally:
            kill(marked(str(folder)))
    lines = [f"{'':<40} {'s':>7} {'min':>7} {'max':>7}  over"]
    rivals = {label: rival for label, (_, _, rival) in ROWS.items()} | {FIRST_STEP: list(ROWS)[-1]}
    values = []
    for label, found in seconds.items():
        times = found[1:]
        row = {"label": label, "n": len(times), "median_s": statistics.median(times), "seconds": times}
        text = f"{label:<40} {row['median_s']:>7.3f} {min(times):>7.3f} {max(times):>7.3f}"
        if rival := rivals[label]:
            row["ratio"] = statistics.median(a / b for a, b in zip(times, seconds[rival][1:], strict=True))
            text += f"  {row['ratio']:.2f} x {rival}"
        lines.append(text)
        values.append(row)
    lines.append(f"n = {args.rounds}")
    publish(args.out, "start", lines, values)
    return 0


def ended(words: list[str], ranks: int, folder: Path) -> float:
    """Seconds until a start has ended."""
    began = time.perf_counter()
    process = started(words, ranks, folder)
    if process.wait(LIMIT_S):
        raise SystemExit(f"tools/bench start: {' '.join(words)} ended with {process.returncode}: {said(folder)}")
    return time.perf_counter() - began


def first_step(folder: Path, number: int) -> float:
    """Seconds until a run has the record of its first epoch."""
    run_dir = folder / f"run-{number}"
    records = run_dir / "records.jsonl"
    began = time.perf_counter()
    process = started(["-m", "hpcsplit", "train", str(folder / "start.toml"), "--run-dir", str(run_dir)], RANKS, folder)
    seconds = until(lambda: records.exists() and records.stat().st_size > 0, began)
    if process.wait(LIMIT_S):
        raise SystemExit(f"tools/bench start: the run ended with {process.returncode}: {said(folder)}")
    return seconds


def until(happened: Callable[[], bool], began: float) -> float:
    while not happened():
        if time.perf_counter() - began > LIMIT_S:
            raise SystemExit(f"tools/bench start: no first step in {LIMIT_S:.0f} s")
        time.sleep(0.002)
    return time.perf_counter() - began


def started(words: list[str], ranks: int, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "said").open("wb") as out:
        return launch(words, ranks, str(folder), out, out, {})


def said(folder: Path) -> str:
    return (folder / "said").read_text(encoding="utf-8", errors="replace")[-500:]


if __name__ == "__main__":
    sys.exit(main())
