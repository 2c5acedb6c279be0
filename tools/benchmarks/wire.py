"""Messages between two ranks on one node against a copy in memory, and how much of them hides behind computation.

    tools/bench wire [--rounds 7]

One way: half of a message there and back, through the program's own Send and Recv.  Exchange: both ranks send and
receive at once, as in a parallel step.  Copy: one tensor into another that exists already, by both ranks at once.
Hidden: with matrix products between the sending and the receiving, and the wire's progress between them, the part of an
exchange that the receiving does not wait for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from hpcsplit.host.memory import keep_freed_memory

keep_freed_memory()  # before torch

import torch  # noqa: E402

from hpcsplit.wire.mpi import Wire  # noqa: E402
from hpcsplit.wire.port import NEXT, PREV, Program, Recv, Send, Share  # noqa: E402
from tools.program import ROOT, kill, launch, marked  # noqa: E402
from tools.timing.table import publish  # noqa: E402

KIB = 1024
SIZES = (4 * KIB, 64 * KIB, 256 * KIB, KIB**2, 4 * KIB**2, 16 * KIB**2, 64 * KIB**2)
BLOCKS, EDGE = 10, 512
LEAST, MOST, TOGETHER = 5, 200, 8 * KIB**2  # repeats of a bout, and bytes that they move where that is between
RANKS = 2
LIMIT_S = 600.0
Bout = Callable[[], Generator[Any, Any, None]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-wire")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        measured(args.rounds)
        return 0
    words = ["-m", "tools.benchmarks.wire", "--rank", "--rounds", str(args.rounds)]
    mark = f"bench-wire-{os.getpid()}"
    process = launch(words, RANKS, mark, subprocess.PIPE, sys.stderr.buffer, {})
    try:
        output = process.communicate(timeout=LIMIT_S)[0]
    except subprocess.TimeoutExpired:
        raise SystemExit(f"tools/bench wire: no end in {LIMIT_S:.0f} s; take fewer --rounds") from None
    finally:
        kill(marked(mark))
    if process.returncode:
        raise SystemExit(f"tools/bench wire: the ranks ended with {process.returncode}")
    rows = json.loads(output)
    lines = [f"{'bytes':>10} {'copy us':>9} {'one way us':>11} {'x':>6} {'exchange us':>12} {'x':>6} {'hidden':>8}"]
    for row in rows:
        copy, way, exchange = (1e6 * row[key] for key in ("copy_s", "one_way_s", "exchange_s"))
        lines.append(
            f"{row['bytes']:>10} {copy:>9.1f} {way:>11.1f} {way / copy:>6.1f} {exchange:>12.1f} "
            f"{exchange / copy:>6.1f} {row['hidden']:>8.0%}"
        )
    lines.append(f"x: over a copy; medians, n = {args.rounds} rounds of {LEAST} to {MOST}")
    publish(args.out, "wire", lines, rows)
    return 0


def measured(rounds: int) -> None:
    """One rank; rank 0 prints what it has measured."""
    torch.set_num_threads(1)
    wire = Wire()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[wire.rank % len(cores)]})
    rows = [wire.run([one_size(wire, size, rounds)])[0] for size in SIZES]
    if wire.rank == 0:
        print(json.dumps(rows))
    wire.close()


def repeats(bout: str, size: int) -> int:
    """Many for small messages: the first ones after a pause are slower.  Computation takes its time."""
    return LEAST if bout == "behind" else max(LEAST, min(MOST, TOGETHER // size))


def one_size(wire: Wire, size: int, rounds: int) -> Program:
    first, side = wire.rank == 0, NEXT if wire.rank == 0 else PREV
    tensor, target = torch.zeros(size // 4), torch.ones(size // 4)
    factor = torch.randn(EDGE, EDGE)

    def compute() -> None:
        for _ in range(BLOCKS):
            torch.mm(factor, factor)
            wire.progress()

    def copy() -> Generator[Any, Any, None]:
        target.copy_(tensor)
        yield from ()

    def there_and_back() -> Generator[Any, Any, None]:
        for sending in (first, not first):
            if sending:
                yield Send(side, "way", tensor)
            else:
                yield Recv(side, "way", tuple(tensor.shape))

    def exchange() -> Generator[Any, Any, None]:
        yield Send(side, "exchange", tensor)
        yield Recv(side, "exchange", tuple(tensor.shape))

    waited: list[float] = []

    def behind() -> Generator[Any, Any, None]:
        yield Send(side, "behind", tensor)
        compute()
        began = time.perf_counter()
        yield Recv(side, "behind", tuple(tensor.shape))
        waited.append(time.perf_counter() - began)

    bouts: dict[str, Bout] = {
        "copy": copy,
        "way": there_and_back,
        "exchange": exchange,
        "behind": behind,
    }
    seconds: dict[str, list[float]] = {name: [] for name in bouts}
    for number in range(-1, rounds):  # round -1 is the warm-up
        for name, bout in bouts.items():
            yield Share(None)
            yield from bout()  # the ranks come back from a Share some milliseconds apart
            began = time.perf_counter()
            for _ in range(repeats(name, size)):
                yield from bout()
            if number >= 0:
                seconds[name].append((time.perf_counter() - began) / repeats(name, size))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    hidden = 1 - statistics.median(waited[LEAST + 1 :]) / median["exchange"]
    return {
        "bytes": size,
        "copy_s": median["copy"],
        "one_way_s": median["way"] / 2,
        "exchange_s": median["exchange"],
        "hidden": hidden,
        "seconds": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
