"""Exact back-propagation over the stages: with one micro-batch bit for bit the whole network's step.

The mini-batch is cut into micro-batches that follow each other through the stages (GPipe, Huang et al. 2019).  Stages
of K = 3 with M = 4, time to the right, F forward and B backward:

    stage 0   F0 F1 F2 F3 .. ..    .. B0 B1 B2 B3
    stage 1      F0 F1 F2 F3 ..  B0 B1 B2 B3
    stage 2         F0 F1 F2 F3 B0 B1 B2 B3

BatchNorm normalises over a micro-batch, so M > 1 is exact up to that.  A stage that is the whole network takes F0 B0 F1
B1 ...: the gradients add up in the same order, and only one micro-batch's activations are alive.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from hpcsplit.methods.contract import (
    Aux,
    Batch,
    Message,
    Step,
    StepResult,
    Tally,
    TrainingMethod,
    Variable,
    method,
)
from hpcsplit.split.stage import Place, Stage
from hpcsplit.wire.port import NEXT, PREV, Recv, Send


@method("backprop", parallel=False)
@dataclass(frozen=True)
class Backprop(TrainingMethod):
    """Exact SGD, Adam … of the whole network; also the serial epochs of every other method."""

    microbatches: int = 1

    def variables(self, place: Place) -> tuple[Variable, ...]:
        return ()

    def messages(self) -> tuple[Message, ...]:
        return (Message(NEXT), Message(PREV))

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        stage.zero_grad()
        tally = Tally(batch.size)
        flight: list[tuple[torch.Tensor, torch.Tensor]] = []
        edges = [m * batch.size // self.microbatches for m in range(self.microbatches + 1)]
        pieces = [slice(a, b) for a, b in pairwise(edges) if b > a]

        for m, piece in enumerate(pieces):
            size = piece.stop - piece.start
            if stage.first:
                x = batch.x[piece]
            else:
                x = (yield Recv(PREV, "x", (size, *stage.in_shape), stage.dtype, m)).requires_grad_()
            y = stage.forward(x)
            if stage.first and stage.last:
                _descend(stage, y, batch.y[piece], batch.size, tally)
                continue
            flight.append((x, y))
            if not stage.last:
                yield Send(NEXT, "x", y.detach(), m)

        for m, (x, y) in enumerate(flight):
            if stage.last:
                _descend(stage, y, batch.y[pieces[m]], batch.size, tally)
            else:
                g = yield Recv(NEXT, "g", tuple(y.shape), stage.dtype, m)
                if y.requires_grad:  # a first stage may have no weights
                    y.backward(g)
            if not stage.first:
                assert x.grad is not None
                yield Send(PREV, "g", x.grad, m)
        stage.update()
        return StepResult(tally)


def _descend(stage: Stage, logits: torch.Tensor, labels: torch.Tensor, batch_size: int, tally: Tally) -> None:
    """Backward from one micro-batch's share of the mini-batch's mean loss."""
    loss = stage.loss(logits, labels).sum()
    tally.terms["phi"] = tally.terms.get("phi", 0.0) + float(loss.detach())
    (loss / batch_size).backward()
