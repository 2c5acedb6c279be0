"""Variables that are a few steps old instead of an epoch: DS-SPH in a chunked sample order.

An epoch is cut into chunks of C mini-batches.  A chunk is augmented anew and taken forward through all stages, a
pipeline, which starts λ_k = x^{k-1} (and κ_k = 0); then it is visited V times with the steps (28)-(30) of DS-SPH
(penalty.py).  C = 3, V = 2, f forward alone:

    f0 f1 f2  0  1  2  0  1  2    f3 f4 f5  3  4  5  3  4  5    …

So λ_k is C steps old when it is used, and the variables of one chunk live in the memory of their stage.  What that
costs: a forward pass for every V steps, the same images V times, and visits without a label, since a label goes back
one stage a visit: stage k of K learns in V - (K-1-k) of them.  With η_λ = 1 the second visit has the exact gradient of
the first; in later ones the last stage sees a λ that its own gradient has moved, the loss through λ is small, and so is
what comes back (the label leaks).  V = K is the natural choice.

An epoch has as many steps with a visit as one in any other order; it visits one sample in V, and each epoch draws
others.  No paper: the order is this program's own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpcsplit.config.option import option
from hpcsplit.methods.contract import Aux, Batch, Step, StepResult, Tally, method
from hpcsplit.methods.penalty import Passing
from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Stage
from hpcsplit.terms.resample import average
from hpcsplit.wire.port import NEXT, PREV, Recv, Send


@method("chunked", augments=True)
@dataclass(frozen=True)
class Chunked(Passing):
    """Penalty or augmented Lagrangian on chunks of mini-batches that are visited several times, augmented."""

    chunk: int = option(8, "a λ is so many steps old when it is used", unit="mini-batches", low=1)
    visits: int = option(2, "of a mini-batch before the next chunk", low=2)

    def visiting_order(self, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        visited = batches[: max(1, len(batches) // self.visits)]
        chunks = [visited[first : first + self.chunk] for first in range(0, len(visited), self.chunk)]
        return [batch for chunk in chunks for _ in range(1 + self.visits) for batch in chunk]

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        chunk, mine = _chunk(stage), _mine(stage, batch)
        if "begun" not in mine:
            yield from self._taken_forward(stage, batch)
            return StepResult(Tally())
        own = {} if stage.first else {name: mine[name] for name in self.names}
        aux = yield from self.passed_on(stage, batch.size, own)
        result = yield from super().step(stage, aux, batch)
        mine.update(_contiguous(result.aux))
        chunk.below("used/").update(own)
        chunk["visited"] = torch.tensor(True)
        return StepResult(result.tally)

    def made(self, stage: Stage, batch: Batch) -> Generator[Send | Recv, Any, Aux]:
        chunk = _chunk(stage)
        visited, own = "visited" in chunk, dict(chunk.below("used/"))
        chunk.clear()
        if not visited:  # other cuts have made the last chunk begin anew
            return {}
        return (yield from self.passed_on(stage, batch.size, own))

    def _taken_forward(self, stage: Stage, batch: Batch) -> Generator[Send | Recv, Any, None]:
        """Start the variables of a mini-batch; those of a chunk that has been visited are of no more use."""
        if "visited" in _chunk(stage):
            _chunk(stage).clear()
        mine, x = _mine(stage, batch), batch.x
        if not stage.first:
            x = yield stage.receive(PREV, "forward", batch.size)
            mine.update(_contiguous(self.begun(average(x.to(stage.wide), self.downsample))))
        if not stage.last:
            with stage.statistics_kept():
                y = stage.infer(x)
            yield Send(NEXT, "forward", y)
        mine["begun"] = torch.tensor(True)


def _chunk(stage: Stage) -> Carry:
    return stage.carry.stage.below("chunk/")


def _mine(stage: Stage, batch: Batch) -> Carry:
    """What is kept for a mini-batch; a sample is in one of an epoch."""
    return _chunk(stage).below(f"{stage.position[0]}.{batch.ids[0]}/")


def _contiguous(values: Aux) -> Aux:
    """In the memory format that a checkpoint gives back, or a continued run would round its sums otherwise."""
    return {name: value.detach().contiguous() for name, value in values.items()}
