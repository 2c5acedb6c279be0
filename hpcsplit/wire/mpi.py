"""Stage programs over MPI: one rank a stage, point-to-point messages between neighbours.  The only importer of mpi4py.

MPI moves nothing in the background.  `Wire.progress` takes in what has arrived and drives what is on its way; a
stage calls it between blocks, so messages travel while the stage computes and a `Recv` mostly finds its message there.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import mpi4py
import numpy as np
import torch

from hpcsplit.host.device import Copy, copy_under_way
from hpcsplit.wire.message import body, bytes_of, opened, room, stamp
from hpcsplit.wire.port import Agree, Meter, Program, Recv, Send, Share, Traffic, World, agree_lag, describe_mismatch

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False
from mpi4py import MPI  # noqa: E402

_IN_FLIGHT = 8  # messages a rank may have on their way before a Send waits, and unread ones it takes in unasked
_ALERT_S = 3e-4  # a rank that waits looks for messages all the time at first, then naps in between
_NAP_SHARE, _NAP_S, _LONG_NAP_S = 0.05, 5e-5, 1e-3  # a nap is this part of the wait so far, between these two
_met = False  # whether MPI has been begun here
_PATIENCE_S = 0.5  # for the main thread to end the job when another thread wants that


class Wire(World):
    """The ranks of MPI as a world, over a communicator of its own; one stage a rank."""

    def __init__(self, orphaned: Callable[[], str] = lambda: "", among: MPI.Comm | None = None) -> None:
        """`among` are the ranks, all of them by default."""
        if not MPI.Is_initialized():
            _meet_all_ranks_in_mpi()
        self.comm = (among or MPI.COMM_WORLD).Dup()
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        super().__init__(self.comm.size, self.comm.rank, self.comm.size, node.rank, node.size, _version())
        self.orphaned = orphaned
        node.Barrier()
        _take_names_away()
        node.Free()
        self.traffic = Traffic()
        # on their way from a device to the host
        self.leaving: deque[tuple[Copy | torch.cuda.Event, Send, torch.Tensor]] = deque()
        self.outgoing: list[tuple[MPI.Request, torch.Tensor]] = []
        self.arriving: deque[tuple[MPI.Request, int, torch.Tensor]] = deque()
        self.mailbox: dict[tuple[int, str], deque[tuple[torch.Tensor, int, float]]] = defaultdict(deque)
        self.unread = 0
        self.agreeing: deque[tuple[MPI.Request, np.ndarray, np.ndarray]] = deque()
        self._waiting: tuple[Recv | str, float] | None = None
        self._ending = 0  # the exit code with which another thread wants the job to end
        self.clock_offset = self._clock_offsets()

    def run(self, programs: Sequence[Program]) -> list[Any]:
        (program,) = programs
        answer: Any = None
        while True:
            try:
                verb = program.send(answer)
            except StopIteration as end:
                self._drain()
                return [end.value]
            self.beats += 1
            answer = None
            if isinstance(verb, Send):
                self._send(verb)
            elif isinstance(verb, Recv):
                answer = self._recv(verb)
            elif isinstance(verb, Share):
                answer = self.share(verb.value)
            elif isinstance(verb, Agree):
                answer = self._agree(verb.level)
            else:
                assert isinstance(verb, Meter)
                answer = self.traffic

    def _send(self, verb: Send) -> None:
        start = time.perf_counter()
        buffer, copy = body(verb.tensor), copy_under_way(verb.tensor.device)
        self.traffic.count(verb.side, verb.tensor.nbytes)
        self.traffic.exposed_s += time.perf_counter() - start
        self._wait_for_room(self.rank + verb.side)
        self.leaving.append((copy, verb, buffer))
        self._post()

    def _post(self) -> None:
        """Send what has arrived on the host, in order."""
        while self.leaving and self.leaving[0][0].query():
            _, verb, buffer = self.leaving.popleft()
            stamp(buffer, verb.name, verb.index, verb.tensor, sent_at=time.time())
            request = self.comm.Isend([bytes_of(buffer), MPI.BYTE], dest=self.rank + verb.side)
            self.outgoing.append((request, buffer))

    def _wait_for_room(self, peer: int) -> None:
        """While too much is on its way, take in what the slow peer sends, but nothing from the other side."""

        def full() -> bool:
            return len(self.leaving) + len(self.outgoing) >= _IN_FLIGHT

        start = time.perf_counter()
        if full():
            self._waiting = f"stage {peer} to take in messages", time.monotonic()
        while full():
            self.progress(asked=True, source=peer)
            if full():
                _pause(start)
        self._waiting = None
        self.traffic.imbalance_s += time.perf_counter() - start

    def _recv(self, verb: Recv) -> torch.Tensor:
        peer = self.rank + verb.side
        queue = self.mailbox[peer, verb.name]
        start, waiting_since, worked = time.perf_counter(), time.time(), 0.0
        if not queue:
            self._waiting = verb, time.monotonic()
        while not queue:
            self.progress(asked=True)
            begun = time.perf_counter()
            if not queue and self.idle():
                worked += time.perf_counter() - begun
                self.beats += 1
            elif not queue:
                _pause(start)
        self._waiting = None
        tensor, index, sent_at = queue.popleft()
        self.unread -= 1
        waited = max(0.0, time.time() - waiting_since - worked)
        exposed = min(waited, max(0.0, time.time() - max(waiting_since, sent_at - self.clock_offset[peer])))
        self.traffic.exposed_s += exposed
        self.traffic.imbalance_s += waited - exposed
        if complaint := describe_mismatch(self.rank, verb, tensor, index):
            raise RuntimeError(complaint)
        return tensor.to(self.device, non_blocking=True)

    def progress(self, asked: bool = False, source: int = MPI.ANY_SOURCE) -> None:
        """Take in messages and finish what is on its way; returns at once.

        Unasked, a rank stops taking in messages while it has many unread ones, which makes the sender wait.
        """
        if self._ending:
            self.abort(self._ending)
        if not asked:
            self.beats += 1
        while asked or self.unread < 2 * _IN_FLIGHT:
            status = MPI.Status()
            message = self.comm.Improbe(source=source, tag=0, status=status)
            if message is None:
                break
            buffer = room(status.Get_count(MPI.BYTE), self.device)
            self.arriving.append((message.Irecv([bytes_of(buffer), MPI.BYTE]), status.source, buffer))
            self.unread += 1
        # Messages are handed over in the order of arrival, so that each (peer, name) stays first-in-first-out.
        while self.arriving and self.arriving[0][0].Test():
            _, source, buffer = self.arriving.popleft()
            name, index, sent_at, tensor = opened(buffer)
            self.mailbox[source, name].append((tensor, index, sent_at))
            self.beats += 1
        self._post()
        self.outgoing = [(request, buffer) for request, buffer in self.outgoing if not request.Test()]

    def share(self, value: Any) -> list[Any]:
        mine, sizes = json.dumps(value).encode(), np.empty(self.size, np.int64)
        self._wait(self.comm.Iallgather(np.array([len(mine)], np.int64), sizes), "all ranks to share")
        counts = sizes.tolist()
        offsets = [sum(counts[:r]) for r in range(len(counts))]
        everything = bytearray(sum(counts))
        request = self.comm.Iallgatherv([mine, len(mine), MPI.BYTE], [everything, counts, offsets, MPI.BYTE])
        self._wait(request, "all ranks to share")
        return [json.loads(everything[o : o + n]) for o, n in zip(offsets, counts, strict=True)]

    def _agree(self, level: int) -> int:
        mine, highest = np.array([level], np.int64), np.empty(1, np.int64)
        self.agreeing.append((self.comm.Iallreduce(mine, highest, MPI.MAX), mine, highest))
        return self._agreed() if len(self.agreeing) > agree_lag(self.size) else 0

    def _agreed(self) -> int:
        """The outcome of the oldest agreement that is under way."""
        request, _, highest = self.agreeing.popleft()
        start = time.perf_counter()
        self._wait(request, "all ranks to agree")
        self.traffic.imbalance_s += time.perf_counter() - start
        return int(highest[0])

    def _wait(self, request: MPI.Request, what: str) -> None:
        start, self._waiting = time.perf_counter(), (what, time.monotonic())
        while not request.Test():
            self.progress(asked=True)
            _pause(start)
        self._waiting = None

    def _drain(self) -> None:
        """Let the last sends leave, and the last agreements come to their end."""
        while self.agreeing:
            self._agreed()
        self._waiting = "the neighbours to take in the last messages", time.monotonic()
        while self.leaving or self.outgoing:
            self.progress(asked=True)
            time.sleep(_NAP_S)
        self._waiting = None

    def waits(self) -> str:
        if (waiting := self._waiting) is None:
            return ""
        what, since = waiting
        if isinstance(what, Recv):
            what = f"'{what.name}' number {what.index} from stage {self.rank + what.side}"
        return f"{what} since {time.monotonic() - since:.0f} s"

    def _clock_offsets(self) -> list[float]:
        """Each rank's clock minus ours (s), to read a peer's time of sending: the quickest of a few exchanges."""
        exchanges = []
        for _ in range(5):
            before = time.time()
            clocks = self.share(time.time())
            exchanges.append((time.time() - before, [clock - before for clock in clocks]))
        hosts, (_, offsets) = self.share(self.host), min(exchanges)
        return [0.0 if host == self.host else offset for host, offset in zip(hosts, offsets, strict=True)]

    def abort(self, code: int) -> NoReturn:
        """End every rank of the job with this exit code, now; from any thread.

        The main thread may be inside MPI, so another one asks it first; one that does not come by soon is stuck
        somewhere else.
        """
        if threading.current_thread() is not threading.main_thread():
            self._ending = code
            time.sleep(_PATIENCE_S)
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            self.comm.Abort(code)
        os._exit(code)

    def close(self, *, last: bool = True) -> None:
        self.share(None)
        self.comm.Free()
        if last:
            MPI.Finalize()
        elif _met:  # else mpi4py does it, which has begun it
            atexit.register(_finalize)


def _pause(start: float) -> None:
    """Between two looks for what has been waited for since `start` (s of perf_counter)."""
    waited = time.perf_counter() - start
    if waited < _ALERT_S:
        os.sched_yield()
    else:
        time.sleep(min(max(_NAP_SHARE * waited, _NAP_S), _LONG_NAP_S))


def _meet_all_ranks_in_mpi() -> None:
    """Wait in the library until every rank has come so far.  No other thread runs meanwhile, and a stack that ends
    here says that a rank is missing."""
    global _met
    _met = True
    MPI.Init_thread(MPI.THREAD_SERIALIZED)


def _finalize() -> None:
    if not MPI.Is_finalized():
        MPI.Finalize()


def _version() -> str:
    """The first line that the library says of itself."""
    return MPI.Get_library_version().split("\n")[0].strip(" \0")


def _take_names_away() -> None:
    """Unlink MPICH's shared memory once every rank of the node has it: it then ends with the last rank, in any case.

    MPICH unlinks it in MPI_Finalize only, so each job that was killed would leave 2 MB in /dev/shm.
    """
    for name in _shared_memory():
        with suppress(OSError):  # another rank of the node has done it
            os.unlink(name)


def _shared_memory() -> set[str]:
    """The files of shared memory that this process has from MPICH, but for those that are unlinked."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return set(re.findall(r" (/dev/shm/mpich_shm_\S+)$", maps, re.MULTILINE))


# ---------------------------------------------------------------------------------------------- what `doctor` asks


@dataclass(frozen=True)
class Library:
    """The MPI library as it describes itself."""

    version: str
    standard: str  # "5.0"
    serialized: bool  # any thread of a rank may call MPI, one at a time: what the wire needs
    memory_kinds: tuple[str, ...]  # "cuda" or "rocm" among them: takes device memory; () when it does not tell


def library() -> Library:
    """What the library can do; MPI must be initialized."""
    kinds = MPI.COMM_WORLD.Get_info().get("mpi_memory_alloc_kinds") or ""
    return Library(
        _version(),
        ".".join(map(str, MPI.Get_version())),
        MPI.Query_thread() >= MPI.THREAD_SERIALIZED,
        tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
    )
