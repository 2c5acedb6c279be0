"""A script for mpirun: runs every program over MPI and writes all ranks' answers to the file named first, as JSON.

With a second word, "late", copies to the host end some time after they began, as a GPU's do.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch

from hpcsplit.wire import mpi
from hpcsplit.wire.message import body as mpi_body
from hpcsplit.wire.mpi import Wire
from hpcsplit.wire.port import NEXT, PREV, Meter, Program, Recv, Send, Share
from tests.wire.programs import PROGRAMS

MEGABYTES_20 = 5 * 2**20  # float32


def big_both_ways(rank: int, size: int) -> Program:
    """Neighbours send each other three messages of 20 MB before anyone receives."""
    sides = [side for side in (PREV, NEXT) if 0 <= rank + side < size]
    for i in range(3):
        for side in sides:
            yield Send(side, "big", torch.full((MEGABYTES_20,), float(10 * rank + i)), i)
    right = True
    for i in range(3):
        for side in sides:
            got = yield Recv(side, "big", (MEGABYTES_20,), index=i)
            right = right and bool((got == 10 * (rank + side) + i).all())
    return right


def many_big_both_ways(rank: int, size: int) -> Program:
    """More messages of 1 MB in both directions than a rank takes in unasked or has on their way."""
    sides = [side for side in (PREV, NEXT) if 0 <= rank + side < size]
    for i in range(30):
        for side in sides:
            yield Send(side, "many", torch.full((2**18,), float(i)), i)
    right = True
    for i in range(30):
        for side in sides:
            right = right and bool(((yield Recv(side, "many", (2**18,), index=i)) == i).all())
    return right


def many_unread(rank: int, size: int) -> Program:
    """Three hundred small messages under as many names, read from the last to the first."""
    for i in range(300) if rank < size - 1 else ():
        yield Send(NEXT, f"n{i}", torch.tensor([i]), i)
    right = True
    for i in reversed(range(300)) if rank > 0 else ():
        right = right and (yield Recv(PREV, f"n{i}", (1,), torch.int64, i)).item() == i
    return right


def late_sender(rank: int, size: int) -> Program:
    """Stage 0 computes for 0.4 s before it sends; stage 1 has nothing else to do."""
    yield Share()
    before = vars((yield Meter())).copy()
    if rank == 0:
        time.sleep(0.4)
        yield Send(NEXT, "late", torch.ones(10))
    if rank == 1:
        yield Recv(PREV, "late", (10,))
    after = vars((yield Meter())).copy()
    return {key: after[key] - before[key] for key in after}


def slow_message(rank: int, size: int) -> Program:
    """Stage 0 hands 20 MB over and then computes for 0.5 s without helping them on their way."""
    t = torch.ones(MEGABYTES_20)
    yield Share()
    before = vars((yield Meter())).copy()
    if rank == 0:
        yield Send(NEXT, "slow", t)
        time.sleep(0.5)
    if rank == 1:
        yield Recv(PREV, "slow", (MEGABYTES_20,))
    after = vars((yield Meter())).copy()
    return {key: after[key] - before[key] for key in after}


def has_work(wire: Wire, rank: int, size: int) -> Program:
    """Stage 1 has ten things to do, 20 ms each, while it waits 0.4 s: how many are left, and its imbalance."""
    left = list(range(10))

    def one() -> bool:
        if left:
            time.sleep(0.02)
            left.pop()
            return True
        return False

    yield Share()
    before = (yield Meter()).imbalance_s
    if rank == 0:
        time.sleep(0.4)
        yield Send(NEXT, "late", torch.ones(10))
    if rank == 1:
        wire.idle = one
        yield Recv(PREV, "late", (10,))
        wire.idle = lambda: False
    return [len(left), (yield Meter()).imbalance_s - before]


def flood(wire: Wire, rank: int, size: int) -> Program:
    """Stage 0 sends forty messages of a megabyte to a stage 1 that is busy; the most that it had on their way."""
    most = 0
    yield Share()
    for i in range(40) if rank == 0 else ():
        yield Send(NEXT, "flood", torch.full((2**18,), float(i)), i)
        most = max(most, len(wire.leaving) + len(wire.outgoing))
    if rank == 1:
        time.sleep(0.3)
        for i in range(40):
            yield Recv(PREV, "flood", (2**18,), index=i)
    return most


def taken_in(wire: Wire, rank: int, size: int) -> Program:
    """Stage 0 sends forty small messages to a stage 1 that computes; how many it took in unasked."""
    for i in range(40) if rank == 0 else ():
        yield Send(NEXT, "small", torch.tensor([i]), i)
    most = 0
    if rank == 1:
        for _ in range(60):  # between blocks
            time.sleep(5e-3)
            wire.progress()
            most = max(most, wire.unread)
        for i in range(40):
            yield Recv(PREV, "small", (1,), torch.int64, i)
    return most


def clock_offsets(wire: Wire) -> list[float]:
    """With clocks that are 100 s apart, on hosts of other names."""
    host, clock = wire.host, time.time
    wire.host = f"host {wire.rank}"
    with patch.object(time, "time", lambda: clock() + 100 * wire.rank):
        found = wire._clock_offsets()
    wire.host = host
    return found


def wrong_shape(rank: int, size: int) -> Program:
    if rank == 0:
        yield Send(NEXT, "x", torch.ones(2))
    if rank == 1:
        yield Recv(PREV, "x", (3,))


class LateCopy:
    """A copy to the host that ends when it has been asked for the third time; until then the buffer is empty."""

    latest: LateCopy

    def __init__(self, tensor: torch.Tensor) -> None:
        self.whole, self.asked = mpi_body(tensor), 0
        self.buffer = torch.zeros_like(self.whole)
        LateCopy.latest = self

    def query(self) -> bool:
        self.asked += 1
        if self.asked == 3:
            self.buffer.copy_(self.whole)
        return self.asked >= 3


def main(answers: Path) -> None:
    wire = Wire()
    rank, size = wire.rank, wire.size
    found, on_their_way = {"late": "late" in sys.argv, "library": wire.library}, 0
    for program in (*PROGRAMS, big_both_ways, many_big_both_ways, many_unread, late_sender, slow_message):
        # counted_bytes expects a fresh meter
        wire.traffic.__init__()  # type: ignore[misc]
        answer = wire.run([program(rank, size)])[0]
        on_their_way += len(wire.leaving) + len(wire.outgoing)
        found[program.__name__] = wire.share(answer)
    for watched in (has_work, flood, taken_in):
        found[watched.__name__] = wire.share(wire.run([watched(wire, rank, size)])[0])
    found["on_their_way"] = wire.share(on_their_way)
    found["clock_offset"] = wire.share([wire.clock_offset, clock_offsets(wire)])
    found["names_left"] = wire.share(sorted(mpi._shared_memory()))
    complaint = None
    try:
        wire.run([wrong_shape(rank, size)])
    except RuntimeError as error:
        complaint = str(error)
    found["wrong_shape"] = wire.share(complaint)
    if rank == 0:
        answers.write_text(json.dumps(found))
    wire.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "late" in sys.argv:
        mpi.body = lambda tensor: LateCopy(tensor).buffer  # type: ignore[attr-defined, assignment]
        mpi.copy_under_way = lambda device: LateCopy.latest  # type: ignore[attr-defined, assignment, return-value]
    main(Path(sys.argv[1]))
