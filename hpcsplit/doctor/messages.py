"""Findings about MPI: the library, the time of messages between neighbours, and whether they can use device memory."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from hpcsplit.doctor.finding import Finding, Status, judged
from hpcsplit.doctor.selftest import device_memory_obstacle
from hpcsplit.doctor.start import Surroundings, by_host, cores_of

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

_SEE = {  # where messages are slow
    "on a host": "whether other programs use these cores, and whether MPI uses shared memory (UCX_TLS, OMPI_MCA_btl)",
    "between hosts": "whether MPI uses the fast network (UCX_NET_DEVICES, FI_PROVIDER, OMPI_MCA_btl_tcp_if_include)",
}
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
    found = f"{' '.join(library.version.split())} (MPI {library.standard})"
    advice = "it gives no MPI_THREAD_SERIALIZED: use an MPI that was built with threads"
    return judged("MPI", found, [] if library.serialized else [advice], asdict(library), Status.BROKEN)


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
    """Seconds from rank `first` to the next one, by MPI alone, as `first` sees them.  LaunchError: none in time."""
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
    crowded = any(len(cores_of(here)) < len(here) for here in by_host(places).values())
    near = [edge for edge in edges if edge.hosts[0] == edge.hosts[1]]
    far = [edge for edge in edges if edge.hosts[0] != edge.hosts[1]]
    return [_messages(kind, each, crowded) for kind, each in zip(_SEE, (near, far), strict=True) if each]


def _messages(kind: str, edges: Sequence[Edge], crowded: bool) -> Finding:
    slow = [f"{edge.ranks[0]}-{edge.ranks[1]}" for edge in edges if edge.slow]
    latency_s, bandwidth = (statistics.median(getattr(e, name) for e in edges) for name in ("latency_s", "bandwidth"))
    found = f"{kind}: {replace(edges[0], latency_s=latency_s, bandwidth=bandwidth).numbers}"
    if len(edges) > 1:
        worst = min(edges, key=lambda edge: edge.bandwidth / edge.latency_s)
        found += f" (medians of {len(edges)} pairs); slowest {worst.ranks[0]}-{worst.ranks[1]}: {worst.numbers}"
    remedy = "give each rank a core of its own" if crowded else f"see {_SEE[kind]}"
    advice = (
        f"ranks {', '.join(slow[:8])}{' …' * (len(slow) > 8)} need more than {LATENCY_SLOW_S * 1e6:.0f} µs or less "
        f"than {BANDWIDTH_SLOW / 1e9:g} GB/s: {remedy}"
    )
    data = {"small_bytes": SMALL_BYTES, "large_bytes": LARGE_BYTES, "edges": [asdict(edge) for edge in edges]}
    return judged("messages", found, [advice] if slow else [], data)


def device_memory(library: Library, place: Surroundings) -> Finding:
    """Whether messages pass through host memory (they do), and whether this MPI could take device memory.

    What MPI says of itself is not enough, and a wrong answer ends in a segmentation fault: two processes of their own
    try it.
    """
    claims = [kind for kind in library.memory_kinds if kind in ("cuda", "rocm")]
    if os.environ.get("MPICH_GPU_SUPPORT_ENABLED") == "1":
        claims.append("MPICH_GPU_SUPPORT_ENABLED=1")
    claimed, problems = ", ".join(claims), []
    data: dict[str, Any] = {"messages": "staged", "memory_kinds": list(library.memory_kinds), "device_memory": False}
    if not claims:
        found = f"memory that MPI knows: {', '.join(library.memory_kinds) or 'not told'}"
    elif not place.device:
        found = f"MPI speaks of {claimed}, but rank 0 sees no GPU"
    elif obstacle := device_memory_obstacle("cuda"):
        data["self_test"] = obstacle
        found = "device memory does not work"
        problems.append(
            f"MPI speaks of {claimed}, but the self-test {obstacle}. Runs are not touched; for other "
            "programs load the module that your site gives for GPU-aware MPI, or switch it off"
        )
    else:
        data["device_memory"] = True
        found = f"device memory would work too ({claimed}, self-test passed)"
    return judged("GPU messages", f"staged through host memory; {found}", problems, data)
