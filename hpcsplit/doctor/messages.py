"""Findings about MPI: the library, the time of messages between neighbours, and whether they can use device memory."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hpcsplit.doctor.finding import Finding, Status
from hpcsplit.doctor.place import Surroundings
from hpcsplit.doctor.selftest import device_memory_obstacle

if TYPE_CHECKING:
    from hpcsplit.wire.mpi import Library, Wire

SMALL_BYTES = 8
LARGE_BYTES = 4 << 20
"""64 rows of 16 x 32 x 32 float32, what a ResNet's first stages exchange for half a mini-batch."""

LATENCY_SLOW_S = 100e-6
"""Shared memory takes 1 to 3 µs, InfiniBand and Slingshot 1 to 3 µs, TCP over Ethernet 20 to 60 µs."""

BANDWIDTH_SLOW = 1e9
"""Bytes/s of 10 Gbit/s Ethernet, rounded down: a mini-batch's 8 MB then take 8 ms, which a step of tens of ms hides.
Shared memory gives 5 to 20 GB/s."""

_WARM_UP, _REPEATS = 5, 200
_BUDGET_S = 0.25
_ANSWER_LIMIT_S = 20.0


@dataclass(frozen=True)
class Edge:
    """Medians between two neighbours: one way of a small message (s), and bytes/s of a large one."""

    ranks: tuple[int, int]
    hosts: tuple[str, str]
    latency_s: float
    bandwidth: float

    @property
    def slow(self) -> bool:
        return self.latency_s > LATENCY_SLOW_S or self.bandwidth < BANDWIDTH_SLOW

    @property
    def numbers(self) -> str:
        return f"{self.latency_s * 1e6:.3g} µs, {self.bandwidth / 1e9:.3g} GB/s"


def mpi(library: Library) -> Finding:
    """Which MPI it is, and whether the wire can use it."""
    return Finding(
        "MPI",
        f"{' '.join(library.version.split())} (MPI {library.standard})",
        Status.GOOD if library.serialized else Status.BROKEN,
        "" if library.serialized else "it gives no MPI_THREAD_SERIALIZED: use an MPI that was built with threads",
        asdict(library),
    )


def measure(wire: Wire) -> dict[str, Any] | None:
    """The edge from this rank to the next one, as plain values; None for the last.  All ranks call it.

    Pairs measure at the same time as they do in a run, first those that begin with an even rank, then the others.
    """
    rank, median_s = wire.rank, dict[int, float]()
    for parity in (0, 1):
        first = rank if rank % 2 == parity else rank - 1
        alone = first < 0 or first + 1 >= wire.size
        for message_bytes in (LARGE_BYTES, SMALL_BYTES):
            wire.share(None)
            times = [] if alone else _times(wire, first, message_bytes, _WARM_UP)  # connections are made at first use
            enough = wire.share(int(min(_REPEATS, _BUDGET_S / (2 * min(times)) + 1)) if times else 0)
            times = [] if alone else _times(wire, first, message_bytes, enough[first])
            if rank == first and times:
                median_s[message_bytes] = statistics.median(times)
    return {"latency_s": median_s[SMALL_BYTES], "bandwidth": LARGE_BYTES / median_s[LARGE_BYTES]} if median_s else None


def _times(wire: Wire, first: int, message_bytes: int, repeats: int) -> list[float]:
    """Seconds from rank `first` to the next one, by MPI alone, as `first` sees them.

    Raises:
        LaunchError: no answer within a limit.
    """
    import torch

    from hpcsplit.wire.port import NEXT, PREV
    from hpcsplit.wire.timing import directly, one_way_times

    message, measures = torch.zeros(message_bytes, dtype=torch.uint8), wire.rank == first
    program = one_way_times(NEXT if measures else PREV, message, repeats, measures=measures)
    times: list[float] = directly(wire, program, _ANSWER_LIMIT_S)
    return times


def neighbours(measured: Sequence[dict[str, Any] | None], places: Sequence[Surroundings]) -> list[Finding]:
    """One finding for neighbours on the same host, one for neighbours on two hosts."""
    edges = [
        Edge((rank, rank + 1), (places[rank].host, places[rank + 1].host), **numbers)
        for rank, numbers in enumerate(measured)
        if numbers
    ]
    kinds = {
        "on a host": [edge for edge in edges if edge.hosts[0] == edge.hosts[1]],
        "between hosts": [edge for edge in edges if edge.hosts[0] != edge.hosts[1]],
    }
    crowded = any(len({core for p in places if p.host == h for core in p.cores}) < n for h, n in _crowds(places))
    return [_messages(kind, chosen, crowded) for kind, chosen in kinds.items() if chosen]


def _crowds(places: Sequence[Surroundings]) -> list[tuple[str, int]]:
    return [(host, sum(p.host == host for p in places)) for host in {p.host for p in places}]


def _messages(kind: str, edges: Sequence[Edge], crowded: bool) -> Finding:
    slow = [edge for edge in edges if edge.slow]
    middle = Edge(
        (0, 0),
        ("", ""),
        statistics.median(edge.latency_s for edge in edges),
        statistics.median(edge.bandwidth for edge in edges),
    )
    found = f"{kind}: {middle.numbers}"
    if len(edges) > 1:
        worst = min(edges, key=lambda edge: edge.bandwidth / edge.latency_s)
        found += f" (medians of {len(edges)} pairs); slowest {worst.ranks[0]}-{worst.ranks[1]}: {worst.numbers}"
    advice = ""
    if slow:
        pairs = ", ".join(f"{edge.ranks[0]}-{edge.ranks[1]}" for edge in slow[:8]) + (" …" if len(slow) > 8 else "")
        advice = (
            f"ranks {pairs} need more than {LATENCY_SLOW_S * 1e6:.0f} µs or less than {BANDWIDTH_SLOW / 1e9:g} GB/s: "
        )
        if crowded:
            advice += "give each rank a core of its own"
        elif kind == "on a host":
            advice += (
                "see whether other programs use these cores, and whether MPI uses shared memory (UCX_TLS, OMPI_MCA_btl)"
            )
        else:
            advice += (
                "see whether MPI uses the fast network (UCX_NET_DEVICES, FI_PROVIDER, OMPI_MCA_btl_tcp_if_include)"
            )
    data = {"small_bytes": SMALL_BYTES, "large_bytes": LARGE_BYTES, "edges": [asdict(edge) for edge in edges]}
    return Finding("messages", found, Status.SLOW if slow else Status.GOOD, advice, data)


def device_memory(library: Library, place: Surroundings) -> Finding:
    """Whether messages pass through host memory (they do), and whether this MPI could take device memory.

    What MPI says of itself is not enough, and a wrong answer ends in a segmentation fault: two processes of their own
    try it.
    """
    claims = [kind for kind in library.memory_kinds if kind in ("cuda", "rocm")]
    if os.environ.get("MPICH_GPU_SUPPORT_ENABLED") == "1":
        claims.append("MPICH_GPU_SUPPORT_ENABLED=1")
    known = ", ".join(library.memory_kinds) or "not told"
    data: dict[str, Any] = {"messages": "staged", "memory_kinds": list(library.memory_kinds), "device_memory": False}
    found = "staged through host memory"
    if not claims:
        return Finding("GPU messages", f"{found}; memory that MPI knows: {known}", data=data)
    if not place.devices:
        return Finding("GPU messages", f"{found}; MPI speaks of {', '.join(claims)}, but rank 0 sees no GPU", data=data)
    if obstacle := device_memory_obstacle("cuda"):
        data["self_test"] = obstacle
        advice = (
            f"MPI speaks of {', '.join(claims)}, but the self-test {obstacle}. Runs are not touched; for other "
            "programs load the module that your site gives for GPU-aware MPI, or switch it off"
        )
        return Finding("GPU messages", f"{found}; device memory does not work", Status.SLOW, advice, data)
    data["device_memory"] = True
    return Finding(
        "GPU messages", f"{found}; device memory would work too ({', '.join(claims)}, self-test passed)", data=data
    )
