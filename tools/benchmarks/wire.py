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
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from hpcsplit.wire.mpi import Wire
from hpcsplit.wire.port import NEXT, PREV, Program, Recv, Send, Share
from hpcsplit.wire.timing import one_way_times
from tools.program import Start, last_line, text
from tools.timing.table import options, publish

KIB = 1024
SIZES = (4 * KIB, 64 * KIB, 256 * KIB, KIB**2, 4 * KIB**2, 16 * KIB**2, 64 * KIB**2)
BLOCKS, EDGE = 10, 512
LEAST, MOST, TOGETHER = 5, 200, 8 * KIB**2  # repeats of a bout, and bytes that they move where that is between
RANKS = 2
LIMIT_S = 600.0


def main() -> None:
    args = options(__doc__, "wire", rounds=7, rank={"action": "store_true", "help": argparse.SUPPRESS})
    if args.rank:
        return measured(args.rounds)
    with tempfile.TemporaryDirectory(prefix="hpcsplit-bench-") as name:
        out, err = Path(name) / "out", Path(name) / "err"
        words = ["-m", "tools.benchmarks", "wire", "--rank", "--rounds", args.rounds]
        ended = Start(words, RANKS, name, out, err).end(LIMIT_S)
        if ended.why:
            raise SystemExit(f"tools/bench wire: no end in {LIMIT_S:.0f} s; take fewer --rounds")
        if ended.code:
            raise SystemExit(f"tools/bench wire: the ranks ended with {ended.code}: {last_line(text(err))}")
        rows = json.loads(text(out))
    lines = [f"{'bytes':>10} {'copy us':>9} {'one way us':>11} {'x':>6} {'exchange us':>12} {'x':>6} {'hidden':>8}"]
    for row in rows:
        copy, way, exchange = (1e6 * row[key] for key in ("copy_s", "one_way_s", "exchange_s"))
        compared = f"{copy:>9.1f} {way:>11.1f} {way / copy:>6.1f} {exchange:>12.1f} {exchange / copy:>6.1f}"
        lines.append(f"{row['bytes']:>10} {compared} {row['hidden']:>8.0%}")
    lines.append(f"x: over a copy; medians, n = {args.rounds} rounds of {LEAST} to {MOST}")
    publish(args.out, "wire", lines, rows)


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
    first = wire.rank == 0
    side = NEXT if first else PREV
    tensor, target = torch.zeros(size // 4), torch.ones(size // 4)
    factor = torch.randn(EDGE, EDGE)
    waited: list[float] = []

    def compute() -> None:
        for _ in range(BLOCKS):
            torch.mm(factor, factor)
            wire.progress()

    def bout(name: str, times: int) -> Generator[Any, Any, None]:
        if name == "way":
            yield from one_way_times(side, tensor, times, measures=first)
            return
        for _ in range(times):
            if name == "copy":
                target.copy_(tensor)
                continue
            yield Send(side, name, tensor)
            if name == "behind":
                compute()
            began = time.perf_counter()
            yield Recv(side, name, tuple(tensor.shape))
            if name == "behind":
                waited.append(time.perf_counter() - began)

    seconds: dict[str, list[float]] = {name: [] for name in ("copy", "way", "exchange", "behind")}
    for number in range(-1, rounds):  # round -1 is the warm-up
        for name, times in seconds.items():
            yield Share(None)
            yield from bout(name, 1)  # the ranks come back from a Share some milliseconds apart
            began = time.perf_counter()
            yield from bout(name, repeats(name, size))
            if number >= 0:
                times.append((time.perf_counter() - began) / repeats(name, size))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "bytes": size,
        "copy_s": median["copy"],
        "one_way_s": median["way"] / 2,
        "exchange_s": median["exchange"],
        "hidden": 1 - statistics.median(waited[LEAST + 1 :]) / median["exchange"],
        "seconds": seconds,
    }
