"""The time that a message takes from one stage to the next, as a program: whatever carries its verbs is measured."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import torch

from hpcsplit.errors import LaunchError
from hpcsplit.host.device import wait_for
from hpcsplit.wire.message import bytes_of
from hpcsplit.wire.port import Program, Recv, Send, Side, Verb

if TYPE_CHECKING:
    from hpcsplit.wire.mpi import Wire


def one_way_times(
    side: Side, tensor: torch.Tensor, repeats: int, *, measures: bool
) -> Generator[Verb, Any, list[float]]:
    """Half the times (s) of so many round trips of `tensor` to the neighbour on `side` and back.

    The neighbour runs it, too; the one of the two that `measures` sends first, and its times are those to look at.
    """
    there, back = Send(side, "way", tensor), Recv(side, "way", tuple(tensor.shape), tensor.dtype)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        yield there if measures else back
        yield back if measures else there
        wait_for(tensor.device)
        times.append((time.perf_counter() - start) / 2)
    return times


def directly(wire: Wire, program: Program, limit_s: float) -> Any:
    """Run a program in which neighbours send in turns by MPI alone, without the wire's headers, naps and staging.

    What arrives, on the wire's device, is overwritten when the same `Recv` is yielded again.  LaunchError where no
    answer comes within `limit_s`.
    """
    memory: dict[int, tuple[torch.Tensor, Any]] = {}  # of a verb: a message is timed without making it
    answer: torch.Tensor | None = None
    while True:
        try:
            verb = program.send(answer)
        except StopIteration as end:
            return end.value
        assert isinstance(verb, Send | Recv)
        if id(verb) not in memory:
            kept = verb.tensor if isinstance(verb, Send) else torch.empty(verb.shape, dtype=verb.dtype).to(wire.device)
            memory[id(verb)] = kept, bytes_of(kept) if kept.device.type == "cpu" else kept
        (answer, values), peer, until = memory[id(verb)], wire.rank + verb.side, time.perf_counter() + limit_s
        carry = wire.comm.Isend if isinstance(verb, Send) else wire.comm.Irecv
        request = carry(values, peer, 1)
        while not request.Test():
            if time.perf_counter() > until:
                raise LaunchError(
                    f"rank {wire.rank} on {wire.host} has waited {limit_s:g} s for a message of "
                    f"{values.nbytes} bytes from or to rank {peer}: look at firewalls and at which network interface "
                    "MPI takes (UCX_NET_DEVICES, OMPI_MCA_btl_tcp_if_include)"
                )
            os.sched_yield()
