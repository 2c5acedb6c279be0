"""Everything that one rank needs to walk through a run, and nothing about how it was put together."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcsplit.checkpoint.origin import Origin
from hpcsplit.data.mixing import Mixing
from hpcsplit.data.order import batches, epoch_order
from hpcsplit.data.source import Source
from hpcsplit.engine.best import best_epoch, enough, score
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import Batch, TrainingMethod, Variable, own_variables, visits
from hpcsplit.run.records import EpochRecord
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.auto import Seen
from hpcsplit.schedule.hybrid import SavePolicy
from hpcsplit.schedule.learning_rate import LearningRate
from hpcsplit.stage.stage import Stage
from hpcsplit.store.store import Store
from hpcsplit.tasks.task import Samples

SAVE, STOP = 1, 2  # requests of a rank at a step boundary
FORWARD_ROWS = 1024  # samples at once where nothing is trained: a full batch's activations would not fit
Choose = Callable[[Sequence[Phase]], Phase]  # the kind of the epoch behind those that are decided


def seen(record: EpochRecord, *, in_turn: bool = False) -> Seen:
    """An epoch as the schedule looks at it.  A refresh that only a restart has made necessary costs nothing, and what
    is no number counts as what records.jsonl has for it, nothing.  Where the stages take turns in one process
    (`in_turn`), a parallel epoch counts as long as its slowest stage."""
    seconds = [s.compute_s or 0.0 for s in record.stages] if in_turn else [record.train_s or 0.0]
    refresh_s = 0.0 if record.recomputed else record.refresh_s or 0.0
    told = [s.label_signal for s in record.stages[:-1] or record.stages]  # the last of several has the label itself
    signals = [signal for signal in told if signal is not None and math.isfinite(signal)]
    value = score(record)
    return Seen(
        record.phase,
        (max(seconds) if record.phase == "parallel" else sum(seconds)) + refresh_s,
        -math.inf if value is None else value,
        sum(max(0.0, signal) for signal in signals) / len(told) if signals else None,
        max((s.violation or 0.0 for s in record.stages), default=0.0),
    )


class Observer:
    """What a rank tells the outside world; this one, of all ranks but rank 0, keeps everything to itself."""

    past: Sequence[EpochRecord] = ()  # of the finished epochs

    def say(self, text: str) -> None: ...

    def progress(self, epoch: int, phase: Phase, step: int, steps: int, samples_per_s: float) -> None: ...

    def resumed(self, first_epoch: int) -> None: ...

    def epoch_done(self, record: EpochRecord) -> None: ...


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must agree with to be continued."""

    fingerprints: Mapping[str, str]
    cuts: tuple[int, ...]
    config_toml: str
    code: Mapping[str, str] = field(default_factory=dict)  # fingerprints of the user's own network (nets/code.py)
    accepts_code: bool = False  # go on where the network computes something else now
    origin: Origin | None = None  # what the run has begun with, which is no part of the agreement
    earlier: Mapping[str, str] = field(default_factory=dict)  # fingerprints from before the run got other epochs

    def digest(self, other: Mapping[str, str] | None = None) -> str:
        """A short hash of all fingerprints but those of the user's code, which may be accepted when it has changed;
        with `other` ones in their place."""
        prints = {**self.fingerprints, **(other or {})}
        return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Job:
    """One rank's share of a run.

    `plan` has the kinds of all `epochs`, or of those that are decided before the run begins; `choose` then decides the
    others, from what rank 0 has recorded.  Where it is `replanned`, it does not follow from the configuration alone.
    `provenance` is what a checkpoint says of this start, `inputs` what it says of the samples; `where` follows the
    program, so that a failure can say where it happened.
    """

    stage: Stage
    method: TrainingMethod
    exact: Backprop
    store: Store | None
    aux_dtype: torch.dtype
    train: Samples
    test: Samples
    train_size: int
    test_size: int
    eval_train_size: int
    batch_size: int
    seed: int
    augment: bool
    epochs: int
    plan: Sequence[Phase]
    replanned: bool
    learning_rate: LearningRate
    save_policy: SavePolicy
    checkpoints: Path | None
    keep_checkpoints: int
    identity: Identity
    mixing: Mixing | None = None
    last_batch: str = "keep"
    evaluate_every: int = 1
    validation: Samples | None = None
    validation_size: int = 0
    batch_norm: bool = True  # whether any stage has BatchNorm statistics
    observer: Observer = field(default_factory=Observer)
    stop_reason: Callable[[], str | None] = lambda: None
    saved_at: float = field(default_factory=time.monotonic)
    choose: Choose | None = None
    provenance: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    still_ours: Callable[[], None] = lambda: None  # raises where another run has taken the run directory over
    averages: bool = False  # whether stages average their weights
    keeps_best: bool = False
    patience: int = 0
    min_delta: float = 0.0
    where: str = "start"
    said_left_out: bool = False  # what of the network no checkpoint keeps

    @classmethod
    def bare(cls, stage: Stage, method: TrainingMethod, exact: Backprop, samples: Samples, **more: Any) -> Job:
        """One for steps alone: it evaluates nothing, saves nothing and tells nobody."""
        plain: dict[str, Any] = {
            "store": None,
            "aux_dtype": torch.float32,
            "train_size": 0,
            "test_size": 0,
            "eval_train_size": 0,
            "batch_size": 1,
            "seed": 0,
            "augment": False,
            "epochs": 1,
            "plan": (),
            "replanned": False,
            "learning_rate": LearningRate(stage.lr, "constant", ()),
            "save_policy": SavePolicy(0, 0.0, "recompute"),
            "checkpoints": None,
            "keep_checkpoints": 1,
            "identity": Identity({}, (), ""),
        }
        return cls(stage=stage, method=method, exact=exact, train=samples, test=samples, **plain | more)

    @property
    def rank(self) -> int:
        return self.stage.index

    def request(self) -> int:
        """What this rank wants at a step boundary: `STOP`, `SAVE`, or to go on (0).  The clock of rank 0 counts."""
        if self.stop_reason():
            return STOP
        return SAVE if self.rank == 0 and self.save_policy.clock_due(time.monotonic() - self.saved_at) else 0

    def evaluated(self, epoch: int) -> bool:
        """Whether the whole network is evaluated after this epoch."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs

    def is_best(self, epoch: int) -> bool:
        """Whether the checkpoint of this epoch is to be kept as that of the best one so far; of rank 0."""
        return self.keeps_best and best_epoch(self.observer.past) == epoch

    def enough(self) -> str:
        """Why the run ends before all epochs are done, or ""; of rank 0."""
        return enough(self.observer.past, self.patience, self.min_delta) if self.observer.past else ""

    def augments(self, phase: Phase) -> bool:
        """Whether the images of such an epoch are cropped and flipped."""
        return self.augment and (phase == "serial" or self.method.facts.augments)

    def mixes(self, phase: Phase) -> bool:
        """Whether the samples of such an epoch are mixed."""
        return self.mixing is not None and (phase == "serial" or self.method.facts.augments)

    def view(self, phase: Phase, epoch: int) -> dict[str, Any]:
        """How a mini-batch is seen in training, for `batch`."""
        return {"phase": phase, "epoch": epoch, "augment": self.augments(phase), "mix": self.mixes(phase)}

    def epoch_batches(self, epoch: int, *, parallel: bool = False) -> Sequence[np.ndarray]:
        """The mini-batches of sample ids of an exact epoch or one of the method's, the same on every rank."""
        as_they_are = parallel and self.method.facts.full_batch
        order = np.arange(self.train_size) if as_they_are else epoch_order(self.seed, epoch, self.train_size)
        dealt = batches(order, self.batch_size, self.last_batch)
        return visits(self.method, dealt) if parallel else dealt

    def measured(self) -> list[np.ndarray]:
        """Mini-batches to measure something on, the same ones after every epoch."""
        order = epoch_order(self.seed, 0, self.train_size)
        return batches(order, min(self.batch_size, FORWARD_ROWS), self.last_batch)

    def in_order(self, size: int) -> list[np.ndarray]:
        """The first `size` samples, all of them, in mini-batches for forward passes alone, in their own order."""
        last = "keep" if self.last_batch == "keep" else "join"
        return batches(np.arange(size), min(self.batch_size, FORWARD_ROWS), last)

    def batch(
        self, ids: np.ndarray, *, phase: Phase = "serial", epoch: int = 0, augment: bool = False, mix: bool = False
    ) -> Batch:
        """The mini-batch of training samples as this stage sees it in such an epoch."""
        sees = self.stage.first or (phase == "parallel" and self.method.facts.images)
        x = self.train.images(ids, epoch=epoch, augment=augment) if sees else torch.empty(0)
        y = self.targets(ids, epoch=epoch, augment=augment) if self.stage.last else torch.empty(0)
        if self.mixing and mix:
            x = self.mixing.images(x, ids, epoch) if sees else x
            y = self.mixing.targets(y, ids, epoch, self.stage.out_shape[0]) if self.stage.last else y
        return Batch(ids, len(ids), x=x, y=y, total=self.train_size)

    def expect(self, order: Sequence[np.ndarray], source: Samples | None = None, **view: Any) -> None:
        """These mini-batches will be asked for, in this order, of the training set where no other is named."""
        samples = source or self.train
        if isinstance(samples, Source):
            samples.expect(order, **view)

    @property
    def data_wait_s(self) -> float:
        """How long training samples have been waited for so far."""
        return self.train.waited_s if isinstance(self.train, Source) else 0.0

    def targets(self, ids: np.ndarray, source: Samples | None = None, **view: Any) -> torch.Tensor:
        """What the outputs of these samples should be, of the training set where no other is named."""
        return self.stage.task.targets(source or self.train, ids, **view)

    @property
    def has_variables(self) -> bool:
        """Whether the method keeps variables for each sample, on this stage or on another."""
        return bool(self.method.variables(self.stage.place))

    def own_variables(self) -> Sequence[Variable]:
        """The method's variables that this stage keeps rows of."""
        return own_variables(self.method, self.stage.place)
