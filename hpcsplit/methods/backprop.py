"""Exact back-propagation over the stages: with one micro-batch bit for bit the whole network's step.

The mini-batch is cut into micro-batches that follow each other through the stages, in the order of
schedule/timetable.py.  Stages of K = 3 with M = 4 in 1F1B order, time to the right, F forward and B backward:

    stage 0   F0 F1 F2 .. .. B0 F3 B1 .. B2 .. B3
    stage 1   .. F0 F1 .. B0 F2 B1 F3 B2 .. B3
    stage 2   .. .. F0 B0 F1 B1 F2 B2 F3 B3

BatchNorm normalises over a micro-batch, so M > 1 is exact up to that; its running statistics take one step a
mini-batch, to the mean over the micro-batches.  With `recompute` a stage keeps the inputs of the micro-batches in
flight only and passes them forward once more before it goes backward (Chen et al., "Training deep nets with sublinear
memory cost", 2016), for a third more arithmetic.  With `deferred` a gradient goes to the stage before as soon as it is
there, and those of the weights, W, follow where a stage would wait (stage/deferred.py), of so many micro-batches at
most as timetable.py says.  A backward pass of the first stage is whole once no forward pass is left, and takes as long
as two others here:

    stage 0   F0 F1 F2 .. .. B0 F3 W0 B1 -- B2 -- B3 --
    stage 1   .. F0 F1 .. B0 F2 B1 F3 B2 W0 B3 W1 W2 W3
    stage 2   .. .. F0 B0 F1 B1 F2 B2 F3 B3 W0 W1 W2 W3
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import zip_longest

from torch import Tensor

from hpcsplit.methods.contract import Aux, Batch, Step, StepResult, Tally, TrainingMethod, method
from hpcsplit.schedule.timetable import Order, Work, slices, timetable, unawaited, waiting
from hpcsplit.stage.batchnorm import FreshStatistics
from hpcsplit.stage.stage import Stage
from hpcsplit.wire.port import NEXT, PREV, Send


@method("backprop", parallel=False)
@dataclass(frozen=True)
class Backprop(TrainingMethod):
    """Exact SGD, Adam … of the whole network; also the serial epochs of every other method."""

    microbatches: int = 1
    order: Order = "1f1b"
    recompute: bool = False
    deferred: bool = False
    waiting: int = 0

    def defers(self, stages: int) -> bool:
        """Whether weight gradients wait; a stage alone has nobody to wait for."""
        return self.deferred and stages > 1

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        stage.zero_grad()
        tally = Tally(batch.size)
        pieces = slices(batch.size, self.microbatches)
        flight: dict[int, tuple[Tensor, Tensor | None, int]] = {}  # input, output where it is kept, number of the pass
        works = timetable(self.order, stage.index, stage.count, len(pieces))
        whole = unawaited(stage.index, works) if self.defers(stage.count) else range(len(pieces))
        fresh = FreshStatistics(stage) if len(pieces) > 1 else None
        most = waiting(stage.index, works, self.waiting)
        late = deque[int](maxlen=most)  # how many weight gradients the newest micro-batches have left
        for work, following in zip_longest(works, works[1:]):
            m, piece = work.microbatch, pieces[work.microbatch]
            size = piece.stop - piece.start
            if work.kind == "F":
                x = batch.x[piece]
                if not stage.first:
                    x = (yield stage.receive(PREV, "x", size, m)).requires_grad_()
                keep = not self.recompute or following == Work("B", m)
                y = self._forward(stage, x, m in whole) if keep else stage.infer(x)
                flight[m] = x, y if keep else None, stage.passes
                if not stage.last:
                    yield Send(NEXT, "x", y.detach(), m)
                continue
            x, y_kept, number = flight.pop(m)
            before = stage.deferred.count
            if stage.last:
                loss = stage.loss(self._output(stage, x, y_kept, number, m in whole), batch.y[piece]).sum()
                tally.count("phi", loss)
                (loss / batch.size).backward()
            else:
                g = yield stage.receive(NEXT, "g", size, m)
                y = self._output(stage, x, y_kept, number, m in whole)
                if m in whole:
                    stage.deferred.finish(stage.between_blocks)  # gradients add up in the micro-batches' order
                if y.requires_grad:  # a first stage may have no weights
                    y.backward(g)
            if not stage.first:
                assert x.grad is not None
                yield Send(PREV, "g", x.grad, m)
            late.append(stage.deferred.count - before)
            stage.deferred.finish(stage.between_blocks, left=sum(late))
        if fresh:
            fresh.step()
        stage.update(batch.size)
        return StepResult(tally)

    def _forward(self, stage: Stage, x: Tensor, whole: bool) -> Tensor:
        if whole:
            return stage.forward(x)
        with stage.deferred.active():
            return stage.forward(x)

    def _output(self, stage: Stage, x: Tensor, y: Tensor | None, number: int, whole: bool) -> Tensor:
        """The output that was kept, or the pass with this number once more."""
        if y is not None:
            return y
        with stage.pass_again(number):
            return self._forward(stage, x, whole)
