"""What rank 0 does with the news of a run: the console, records.jsonl, and at the end the picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcsplit.engine.job import Observer
from hpcsplit.report.console import Console
from hpcsplit.report.picture import draw
from hpcsplit.report.tensorboard import Board
from hpcsplit.run.records import EpochRecord, Phase, Records
from hpcsplit.stage.cuts import recut

CLEARLY = 1.05
LONG_ENOUGH_S = 1.0  # for a stage's computing in an epoch to mean something


@dataclass(eq=False)
class Watch(Observer):
    """The observer of a run on rank 0."""

    console: Console
    records: Records
    phases: Sequence[Phase]
    costs: Sequence[float] = ()
    cuts: Sequence[int] = ()
    board: Board | None = None
    past: list[EpochRecord] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.console.say(text)

    def progress(self, epoch: int, phase: Phase, step: int, steps: int, samples_per_s: float) -> None:
        loss = next((record.loss for record in reversed(self.past) if record.loss is not None), None)
        self.console.progress(epoch, phase, step, steps, loss, samples_per_s)

    def resumed(self, first_epoch: int) -> None:
        """Drop the records of epochs that are trained again."""
        self.records.truncate(first_epoch)
        self.past = self.records.load()
        if self.board:
            self.board.begin(self.past)

    def epoch_done(self, record: EpochRecord) -> None:
        self.records.append(record)
        self.past.append(record)
        if self.board:
            self.board.add(record)
        self.console.epoch_done(record, self._eta_s(record.epoch + 1))
        if record.phase == "parallel" and sum(r.phase == "parallel" for r in self.past) == 1:
            self._compare_cuts(record)

    def _compare_cuts(self, record: EpochRecord) -> None:
        """After the first parallel epoch: say so when other cuts would have been clearly faster."""
        seconds = [stage.compute_s or 0.0 for stage in record.stages]
        if not self.cuts or len(seconds) != len(self.cuts) + 1 or min(seconds) < LONG_ENOUGH_S:
            return
        better, factor = recut(self.costs, self.cuts, seconds)
        if factor > CLEARLY:
            self.say(
                f"note: the stages computed {', '.join(f'{s:.2f}' for s in seconds)} s in this epoch; parallel epochs "
                f"would be {factor:.2f} x as fast with split.cuts = {list(better)}: stop, and start again with that"
            )

    def _eta_s(self, epochs_done: int) -> float:
        """Seconds to the end: the median time of past epochs of either kind for each epoch that is left."""
        known = {p: [r.wall_s for r in self.past if r.phase == p and r.wall_s] for p in ("serial", "parallel")}
        anything = [t for times in known.values() for t in times] or [0.0]
        typical = {p: statistics.median(times or anything) for p, times in known.items()}
        return sum(typical[p] for p in self.phases[epochs_done:])

    def draw(self, path: Any, title: str) -> None:
        """The picture of the curves."""
        if self.past:
            draw({title: self.past}, path, title)
