"""Which faults: drawn from one seed, every moment as often as every other, the rarest kind that fits it first."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.campaigns.moments import AFTER_RECORD, ANY_TIME, MOMENTS, PLACES, Hook
from tools.campaigns.striking import DAMAGES, DEADLY, DISK, SIGNALS, STALLS, TORN

Counts = Mapping[int, Mapping[int, Mapping[str, int]]]  # calls of every hook: stages -> rank -> key -> calls


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        hook, call: the call of that hook (from 1) at which it strikes; "" at a point in time.
        share: otherwise when, as a share of the time that the run without faults took; for damage, where in the file.
    """

    number: int
    stages: int
    rank: int
    moment: str
    kind: str
    hook: str
    call: int
    share: float

    def __str__(self) -> str:
        when = f"{self.hook}, call {self.call}" if self.hook else f"at {self.share:.0%} of the time"
        return f"fault {self.number}: {self.kind}, {self.moment}, rank {self.rank} of {self.stages} ({when})"


def draw(count: int, seed: int, stages: Sequence[int], counts: Counts) -> list[Fault]:
    """`count` faults for runs of these numbers of stages."""
    chance = random.Random(seed)
    moments = list(PLACES)
    chance.shuffle(moments)
    tried: Counter[str] = Counter()
    faults = []
    for number, moment in zip(range(count), itertools.cycle(moments)):
        size = chance.choice([k for k in stages if _ranks(moment, k, counts)])
        rank = chance.choice(_ranks(moment, size, counts))
        calls = counts[size][rank]
        hooks = [hook for hook in _hooks(moment) if calls.get(hook.key)]
        fitting = {kind: [h for h in hooks if _fits(kind, h, moment, size)] for kind in _kinds(moment, size)}
        kinds = [kind for kind, found in fitting.items() if found or not hooks]
        rarest = min(tried[kind] for kind in kinds)
        kind = chance.choice([kind for kind in kinds if tried[kind] == rarest])
        tried[kind] += 1
        key, call = "", 0
        if hooks:
            key = chance.choice(fitting[kind]).key
            first = 2 if moment.endswith("between the runs") else 1  # a checkpoint must be there
            call = chance.randint(first, calls[key])
        faults.append(Fault(number, size, rank, moment, kind, key, call, chance.random()))
    return faults


def _hooks(moment: str) -> Sequence[Hook]:
    return (AFTER_RECORD,) if moment.endswith("between the runs") else MOMENTS.get(moment, ())


def _ranks(moment: str, stages: int, counts: Counts) -> list[int]:
    """The ranks that come to this moment."""
    if moment == ANY_TIME:
        return list(range(stages))
    if moment == "store between the runs" and stages == 1:  # one stage has no variables
        return []
    return [rank for rank in range(stages) if any(counts[stages][rank].get(hook.key) for hook in _hooks(moment))]


def _kinds(moment: str, stages: int) -> Sequence[str]:
    if moment.endswith("between the runs"):
        return DAMAGES
    stalls = STALLS if stages > 1 else STALLS[1:]  # nobody sees that a single process is stopped
    if moment == ANY_TIME:  # only what can come from outside, or from another thread
        return ("KILL", "SEGV", "thread exception", *SIGNALS, *stalls[:-1])
    return (*DEADLY, *DISK, TORN, *SIGNALS, *stalls)


def _fits(kind: str, hook: Hook, moment: str, stages: int) -> bool:
    if kind in DISK:
        return hook.disk
    if kind == TORN:
        return hook.torn
    return not (kind in STALLS and hook.early and stages == 1)
