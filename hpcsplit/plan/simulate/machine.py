"""The machine that is simulated: nodes of ranks, links between neighbours, a disk a node, and the clock of a rank."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Machine:
    """Speeds are in bytes/s, 0 for no limit.

    Attributes:
        node: ranks of a node, which are neighbours.
        latency_s, bandwidth: of a link between two nodes, in each direction.
        inside_latency_s, inside_bandwidth: of one inside a node.
        disk: of a node's disk, shared by its ranks; 0: rows stay in memory.
        straggler: the rank in the middle computes so many times as long.
    """

    node: int = 8
    latency_s: float = 2e-6
    bandwidth: float = 12.5e9
    inside_latency_s: float = 1e-6
    inside_bandwidth: float = 5e9
    disk: float = 0.0
    straggler: float = 1.0

    def link(self, a: int, b: int) -> Link:
        if a // self.node == b // self.node:
            return Link(self.inside_bandwidth, self.inside_latency_s)
        return Link(self.bandwidth, self.latency_s)


@dataclass
class Link:
    """One direction between two neighbours, or a node's disk: what is asked for follows each other, in that order."""

    bandwidth: float
    latency_s: float = 0.0
    free: float = 0.0

    def done(self, asked: float, size_bytes: float) -> float:
        """When what is sent, read or written from this moment on is there."""
        if self.bandwidth:
            asked = self.free = max(self.free, asked) + size_bytes / self.bandwidth
        return asked + self.latency_s


class Span(NamedTuple):
    """What a rank did from one moment to another (s)."""

    rank: int
    kind: str  # forward, backward, weights, update, variables, messages, data; link, store, wait
    start: float
    end: float


@dataclass
class Clock:
    """A rank's time, and what it has gone into; `slowness` stretches work, not waiting."""

    rank: int
    slowness: float = 1.0
    now: float = 0.0
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spans: list[Span] = field(default_factory=list)

    def work(self, kind: str, seconds: float) -> None:
        self._until(self.now + self.slowness * seconds, kind)

    def wait(self, moment: float, kind: str) -> None:
        """Until then, if it is not past."""
        self._until(max(moment, self.now), kind)

    def _until(self, moment: float, kind: str) -> None:
        if moment > self.now:
            self.spent[kind] += moment - self.now
            self.spans.append(Span(self.rank, kind, self.now, moment))
            self.now = moment
