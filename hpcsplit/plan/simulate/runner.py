"""Answers the verbs of all stage programs, as lockstep does, and lets a clock of each rank say when.

The rank whose clock is behind all others that can go on goes on.  A message leaves when its sender's clock says so and
is there when the link has carried it; who waits for it waits until then.  So each rank's course follows from its own
program and its neighbours' messages alone; only ranks that share a disk meet there in the order in which they are let
on, which is that of their clocks up to the work between two verbs.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from hpcsplit.plan.simulate.machine import Clock, Link, Machine
from hpcsplit.wire.port import Agree, Program, Recv, Send, Traffic, agree_lag, describe_mismatch


class _Message(NamedTuple):
    tensor: torch.Tensor
    number: int
    sent: float
    arrival: float


@dataclass
class _Agreement:
    """One call of `Agree` on all ranks: how many have made it, when the last of them, the highest level, and who waits
    for its outcome."""

    calls: int = 0
    last_s: float = 0.0
    level: int = 0
    waiting: list[int] = field(default_factory=list)


class Simulation:
    """One program for each clock.

    Attributes:
        traffic: what each rank has sent, in bytes of the machine.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        clocks: Sequence[Clock],
        machine: Machine,
        bytes_of_one: float,
        packing_s: float,
        idle: Sequence[Callable[[], bool]],
    ) -> None:
        """`bytes_of_one`: of the machine, for a byte of the tensors here; `packing_s`: what putting one into a message
        takes its sender; `idle`: what each rank does while it waits for a message, as World.idle."""
        self.programs, self.clocks, self.machine = programs, clocks, machine
        self.bytes_of_one, self.packing_s, self.idle = bytes_of_one, packing_s, idle
        self.traffic = [Traffic() for _ in programs]
        self.links: dict[tuple[int, int], Link] = {}
        self.queues: dict[tuple[int, int, str], deque[_Message]] = defaultdict(deque)
        self.awaited: dict[int, Recv] = {}
        self.calls = [0] * len(programs)  # of Agree
        self.agreements: dict[int, _Agreement] = defaultdict(_Agreement)
        self.ready: list[tuple[float, int]] = []  # a heap
        self.answers: list[Any] = [None] * len(programs)
        self.meeting_s = machine.latency_s * math.ceil(math.log2(max(len(programs), 2)))

    def run(self) -> float:
        """Run all programs to their end; the moment of the last one's."""
        for rank in range(len(self.programs)):
            self._go_on(rank)
        running = len(self.programs)
        while self.ready:
            _, rank = heapq.heappop(self.ready)
            try:
                verb = self.programs[rank].send(self.answers[rank])
            except StopIteration:
                running -= 1
                continue
            if isinstance(verb, Send):
                self._send(rank, verb)
            elif isinstance(verb, Recv):
                self.awaited[rank] = verb
                self._receive(rank)
            else:
                assert isinstance(verb, Agree), f"{verb} has no time"
                self._agree(rank, verb.level)
        assert not running, f"{running} stages wait for ever: {self.awaited}"
        return max(clock.now for clock in self.clocks)

    def _go_on(self, rank: int, answer: Any = None) -> None:
        self.answers[rank] = answer
        heapq.heappush(self.ready, (self.clocks[rank].now, rank))

    def _send(self, rank: int, verb: Send) -> None:
        peer, clock = rank + verb.side, self.clocks[rank]
        size = verb.tensor.nbytes * self.bytes_of_one
        clock.work("messages", self.packing_s * size)
        self.traffic[rank].count(verb.side, round(size))
        link = self.links.setdefault((rank, peer), self.machine.link(rank, peer))
        message = _Message(verb.tensor.detach(), verb.index, clock.now, link.done(clock.now, size))
        self.queues[rank, peer, verb.name].append(message)
        if peer in self.awaited:
            self._receive(peer)
        self._go_on(rank)

    def _receive(self, rank: int) -> None:
        """Hand over what the rank waits for, if it has been sent."""
        wanted, clock = self.awaited[rank], self.clocks[rank]
        queue = self.queues[rank + wanted.side, rank, wanted.name]
        if not queue:
            return
        message = queue.popleft()
        complaint = describe_mismatch(rank, wanted, message.tensor, message.number)
        assert not complaint, complaint
        while clock.now < message.arrival and self.idle[rank]():
            pass
        clock.wait(message.sent, "wait")
        clock.wait(message.arrival, "link")
        del self.awaited[rank]
        self._go_on(rank, message.tensor)

    def _agree(self, rank: int, level: int) -> None:
        """Note the level; go on once all have made the call that this one is answered with."""
        made, asked = self.agreements[self.calls[rank]], self.calls[rank] - agree_lag(len(self.programs))
        self.calls[rank] += 1
        made.calls, made.last_s = made.calls + 1, max(made.last_s, self.clocks[rank].now)
        made.level = max(made.level, level)
        if asked < 0:
            self._go_on(rank, 0)
        else:
            self.agreements[asked].waiting.append(rank)
        for one in (self.agreements[asked], made):
            if one.calls == len(self.programs):
                for waiter in one.waiting:
                    self.clocks[waiter].wait(one.last_s, "wait")
                    self.clocks[waiter].wait(one.last_s + self.meeting_s, "link")
                    self._go_on(waiter, one.level)
                one.waiting.clear()
