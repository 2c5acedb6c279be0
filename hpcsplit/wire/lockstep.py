"""All stages in one process, in turn: the reference that the MPI runner is compared with.

A stage runs until it has sent a message or has to wait, so that messages do not pile up.  Deadlocks are found, and the
error says what every stage waits for.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch

from hpcsplit.wire.port import Agree, Meter, Program, Recv, Send, Share, Traffic, World, agree_lag, describe_mismatch


class Deadlock(RuntimeError):
    """No stage can go on."""


class WrongMessage(RuntimeError):
    """A message that is not the one waited for, or one that nobody took."""


def run(programs: Sequence[Program]) -> list[Any]:
    """Run one program for each stage to its end and return their results."""
    return _Lockstep(programs).run()


class Alone(World):
    """This process as the whole world, with all stages."""

    def share(self, value: Any) -> list[Any]:
        return [value]

    def run(self, programs: Sequence[Program]) -> list[Any]:
        return run(programs)


class _Lockstep:
    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs, count = programs, len(programs)
        self.queues: dict[tuple[int, int, str], deque[tuple[torch.Tensor, int]]] = defaultdict(deque)
        self.waiting: list[Recv | Share | Agree | None] = [None] * count
        self.answers: list[Any] = [None] * count
        self.results: list[Any] = [None] * count
        self.running = [True] * count
        self.traffic = [Traffic() for _ in range(count)]
        self.levels: list[list[int]] = [[] for _ in range(count)]

    def run(self) -> list[Any]:
        try:
            while any(self.running):
                moved = [self._advance(rank) for rank in range(len(self.programs)) if self.running[rank]]
                if not any(moved) and not self._meet():
                    raise Deadlock("; ".join(self._complaints()))
        finally:
            for program in self.programs:
                program.close()
        if left := [f"'{name}' from stage {a} to stage {b}" for (a, b, name), queue in self.queues.items() if queue]:
            raise WrongMessage(f"sent but never received: {', '.join(left)}")
        return self.results

    def _advance(self, rank: int) -> bool:
        """Run one stage until it has sent or waits; False when it could not move at all."""
        started = time.perf_counter()
        try:
            return self._turn(rank)
        finally:
            self.traffic[rank].turn_s += time.perf_counter() - started

    def _turn(self, rank: int) -> bool:
        wanted = self.waiting[rank]
        if isinstance(wanted, Share):
            return False
        if isinstance(wanted, Recv):
            queue = self.queues[rank + wanted.side, rank, wanted.name]
            if not queue:
                return False
            tensor, index = queue.popleft()
            if complaint := describe_mismatch(rank, wanted, tensor, index):
                raise WrongMessage(complaint)
            self.answers[rank], self.waiting[rank] = tensor, None
        if isinstance(wanted, Agree):
            call = len(self.levels[rank]) - 1 - agree_lag(len(self.programs))
            if any(len(given) <= call for given in self.levels):
                return False
            self.answers[rank] = max(given[call] for given in self.levels) if call >= 0 else 0
            self.waiting[rank] = None
        while True:
            try:
                verb = self.programs[rank].send(self.answers[rank])
            except StopIteration as end:
                self.results[rank], self.running[rank] = end.value, False
                return True
            self.answers[rank] = None
            if isinstance(verb, Send):
                self._neighbour(rank, verb.side)
                self.queues[rank, rank + verb.side, verb.name].append((verb.tensor.detach().clone(), verb.index))
                self.traffic[rank].count(verb.side, verb.tensor.nbytes)
                return True
            if isinstance(verb, Meter):
                self.answers[rank] = self.traffic[rank]
                continue
            if isinstance(verb, Recv):
                self._neighbour(rank, verb.side)
            elif isinstance(verb, Agree):
                self.levels[rank].append(verb.level)
            self.waiting[rank] = verb
            return True

    def _neighbour(self, rank: int, side: int) -> None:
        if not 0 <= rank + side < len(self.programs):
            raise WrongMessage(f"stage {rank} has no neighbour on side {side:+d}")

    def _meet(self) -> bool:
        """When every stage stands at a Share, give all of them the list of all values."""
        values = [verb.value for verb in self.waiting if isinstance(verb, Share)]
        if len(values) < len(self.programs):
            return False
        for rank in range(len(values)):
            self.answers[rank], self.waiting[rank] = list(values), None
        for rank in range(len(values)):
            self._advance(rank)
        return True

    def _complaints(self) -> list[str]:
        lines = []
        for rank, verb in enumerate(self.waiting):
            if isinstance(verb, Recv):
                peer = rank + verb.side
                others = [name for (a, b, name), queue in self.queues.items() if (a, b) == (peer, rank) and queue]
                got = f", got '{others[0]}'" if others else ""
                lines.append(f"stage {rank} waits for '{verb.name}' from stage {peer}{got}")
            elif isinstance(verb, Share):
                lines.append(f"stage {rank} waits for all stages to share")
            elif isinstance(verb, Agree):
                lines.append(f"stage {rank} waits for all stages to agree")
            elif not self.running[rank]:
                lines.append(f"stage {rank} has ended")
        return lines
