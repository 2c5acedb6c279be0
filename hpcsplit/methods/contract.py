"""What a training method is: per-sample variables, one step of one stage, and the adjoint it puts at a stage's output.

A method is one file in this folder: a frozen dataclass decorated with `@method("name")`, whose `option(...)` fields are
its keys in the [method] section.  It sees one stage and its neighbours PREV and NEXT; ranks, files, epochs and devices
are the engine's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hpcsplit.config.declared import Facts
from hpcsplit.config.sections import OptimSection
from hpcsplit.host.device import Copy, download
from hpcsplit.stage.stage import Place, Shape, Stage
from hpcsplit.terms.distance import wide_sum
from hpcsplit.terms.resample import average, cells
from hpcsplit.wire.port import Recv, Send, Side

Aux = Mapping[str, Tensor]
Advice = list[tuple[str, str, str]]  # (option, value, reason) each
Class = TypeVar("Class", bound=type)


def method(name: str, **facts: Any) -> Callable[[Class], Class]:
    """Mark a class as the training method `name`, of which these `Facts` (config/declared.py) hold.

    Raises:
        TypeError: the class does not say what a stage was trained with in parallel epochs, so the probe finds no label
            signal (engine/probe.py), and schedule.ratio = "auto" nothing to judge it by.
    """

    def mark(cls: Class) -> Class:
        cls.facts = Facts(**facts)  # type: ignore[attr-defined]
        if cls.facts.parallel and cls.facts.stages != 1 and not _has_label_signal(cls):  # type: ignore[attr-defined]
            raise TypeError(
                f"{cls.__name__}, @method({name!r}), does not say what its parallel epochs have used: define "
                "local_input(), target() and adjoint(), and made() where variables() is empty; or there used() alone"
            )
        return cls

    return mark


@dataclass(frozen=True)
class Variable:
    """One tensor per training sample at a boundary of a stage, or at one of its blocks.

    Attributes:
        boundary: at the stage's "input" (stages 1 … K-1) or "output" (stages 0 … K-2), or at the input of the stage's
            block of this number (the number of blocks: the stage's output, on the last stage too).
        start: its value at each switch to parallel epochs: the activation there ("forward"; stage boundaries only),
            "zero", or what the method's `first_rows` says ("own").
        copy_to: the neighbour that computes with it too; it finds it as "next_<name>" or "prev_<name>".
        factor: 2 stores one value per 2 x 2 pixels.
    """

    name: str
    boundary: Literal["input", "output"] | int
    start: Literal["forward", "zero", "own"]
    copy_to: Side | None = None
    factor: int = 1

    def on(self, place: Place) -> bool:
        """Whether the stage owns the variable."""
        return not {"input": place.first, "output": place.last}.get(str(self.boundary), False)

    def row_shape(self, place: Place) -> Shape:
        """Shape of one sample's stored row."""
        return cells(place.shapes[self._block(place)], self.factor)

    def before_block(self, place: Place) -> int:
        """The block of the whole network that it stands before; the number of blocks at the end."""
        return place.first_block + self._block(place)

    def _block(self, place: Place) -> int:
        return int({"input": 0, "output": len(place.shapes) - 1}.get(str(self.boundary), self.boundary))

    def start_rows(self, activation: Tensor) -> Tensor:
        """The stored form of an activation (B, *boundary shape)."""
        return average(activation.float(), self.factor)


@dataclass(frozen=True)
class Batch:
    """A mini-batch as one stage sees it: images `x` on the first stage (on all, where the method asks for that), the
    task's targets `y` (labels) on the last; empty elsewhere.

    `total` is the number of training samples that it was taken from.
    """

    ids: Any
    size: int
    x: Tensor = torch.empty(0)  # noqa: RUF009
    y: Tensor = torch.empty(0)  # noqa: RUF009
    total: int = 0


@dataclass
class Tally:
    """Sums over samples that a step reports; the engine adds them up over an epoch.

    `terms` are the parts of this stage's loss, by name.  `gap_sq` and `aux_sq` are ‖λ − x‖² and ‖λ‖² of the boundary
    behind this stage: their quotient is the squared relative constraint violation there.  A step may leave them on its
    device, as float64 without a dimension; `numbers` brings them to the host.
    """

    samples: int = 0
    terms: dict[str, Any] = field(default_factory=dict)
    gap_sq: Any = 0.0
    aux_sq: Any = 0.0

    def count(self, term: str, values: Tensor) -> None:
        """Add the sum of the values of some samples to a term."""
        added = wide_sum(values)
        self.terms[term] = self.terms[term] + added if term in self.terms else added

    def numbers(self) -> Callable[[], Tally]:
        """Begins to bring what lies on a device to the host; the answer waits for it and has floats alone."""
        values = [self.gap_sq, self.aux_sq, *self.terms.values()]
        away = {n: value for n, value in enumerate(values) if isinstance(value, Tensor)}
        here, arrival = download(torch.stack(list(away.values()))) if away else (torch.empty(0), Copy())

        def read() -> Tally:
            arrival.synchronize()
            result = dict(enumerate(values)) | dict(zip(away, here.tolist(), strict=True))
            gap_sq, aux_sq, *terms = result.values()
            return Tally(self.samples, dict(zip(self.terms, terms, strict=True)), gap_sq, aux_sq)

        return read

    def add(self, other: Tally) -> None:
        self.samples += other.samples
        for name, value in other.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        self.gap_sq += other.gap_sq
        self.aux_sq += other.aux_sq


@dataclass(frozen=True)
class StepResult:
    """What a step hands back: its tally, and new rows of the variables that it changed."""

    tally: Tally
    aux: Aux = field(default_factory=dict)


Step = Generator[Send | Recv, Any, StepResult]
Talk = Generator[Send | Recv, Any, None]


class TrainingMethod(ABC):
    """The interface that the engine drives; what only some methods have to say is in the protocols below.

    Attributes:
        facts: what the decorator says of the class.
        microbatches: a step takes a mini-batch in so many pieces, one after another.
        beta: the penalty coefficient, for the record.
        starts_with_adjoint: at each switch an exact pass back through all stages gives `first_rows` its gradients.
    """

    facts: ClassVar[Facts] = Facts()
    microbatches = 1
    beta: float | None = None
    starts_with_adjoint = False

    def variables(self, place: Place) -> tuple[Variable, ...]:
        """The per-sample variables; those at stage boundaries are the same on every stage that has the boundary."""
        return ()

    @abstractmethod
    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        """One mini-batch on one stage.  Writes nothing but the stage's own weights and its `carry`.  Every message
        has a row for each sample of the mini-batch; `plan` counts what is sent by replaying this step."""

    def at(self, parallel_epoch: int) -> Self:
        """The method as it stands in the given parallel epoch (0, 1, …): coefficients may follow a schedule."""
        return self

    def restarts(self, parallel_epoch: int) -> bool:
        """Whether the variables start anew before this parallel epoch although the one before was parallel too."""
        return False

    def first_rows(self, stage: Stage, x: Tensor, g: Tensor) -> Aux:
        """First rows of the variables whose start is "own", from the stage's exact input (B, *in_shape) and, where
        `starts_with_adjoint`, the samples' own gradients there, as large (else empty)."""
        return {}


@runtime_checkable
class Compared(Protocol):
    """With a variable on a stage boundary, stored or made by each step."""

    def local_input(self, stage: Stage, aux: Aux) -> Tensor:
        """What a stage that is not the first is trained on, (B, *in_shape)."""

    def target(self, stage: Stage, aux: Aux) -> Tensor:
        """The variable that stands for the output of a stage that is not the last, (B, *out_shape)."""

    def adjoint(self, stage: Stage, aux: Aux, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the method puts in place of ∂φ/∂x at the output x of a stage that is not the last, per sample, and the
        penalty part of it alone; both (B, *out_shape)."""


@runtime_checkable
class Makes(Protocol):
    """With variables that are not kept from epoch to epoch."""

    def made(self, stage: Stage, batch: Batch) -> Generator[Send | Recv, Any, Aux]:
        """Their values on the last mini-batch of a parallel epoch, and the neighbours' copies; then forget them."""


@runtime_checkable
class Uses(Protocol):
    """Without variables."""

    def used(self, stage: Stage) -> tuple[Tensor, Tensor] | None:
        """What the stage has taken for its output on the last piece of a parallel epoch's last mini-batch and for the
        per-sample gradient there, both (n, *out_shape); then forget them."""


@runtime_checkable
class InFlight(Protocol):
    """With mini-batches in flight between two steps."""

    def delay(self, stage: int, stages: int) -> float:
        """The mean number of updates between a gradient's forward pass and its own update, on stage number `stage`."""

    def flights(self, stage: int, stages: int) -> float:
        """How many mini-batches are in flight there between two steps."""

    def settle(self, stage: Stage) -> Talk:
        """Receive into the stage's `carry` what is on its way to it: the next step may be that of another start."""

    def drain(self, stage: Stage, *, goes_on: bool) -> Talk:
        """The end of a parallel epoch, after its last mini-batch; `goes_on` says that another one follows.  Leave no
        message on its way."""


@runtime_checkable
class Iterates(Protocol):
    """With epochs that are iterations over all samples."""

    def prepare(self, stage: Stage) -> None:
        """Change the initial weights of a stage, before a run begins."""

    def close(self, stage: Stage) -> Mapping[str, float]:
        """The end of a parallel epoch on one stage, after its last mini-batch; more terms for the record."""

    def verdict(self, stage: Stage, terms: Mapping[str, float]) -> str | None:
        """A sentence that ends the run, the same on every stage, after a parallel epoch with these `terms` (the means
        over the samples, summed over the stages)."""


@runtime_checkable
class Sweeps(Protocol):
    """With several passes over the mini-batches in an epoch."""

    def sweeps(self) -> tuple[Callable[[Stage, Aux, Batch], Step], ...]:
        """The passes that make an epoch; only the last one returns new rows."""


@runtime_checkable
class Revisits(Protocol):
    """With an order of its own."""

    def visiting_order(self, batches: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The visits of a parallel epoch, from its mini-batches of sample ids."""


@runtime_checkable
class Advises(Protocol):
    """With options that `plan` can recommend."""

    def advice(self, optim: OptimSection, plan: Mapping[str, Any], rows: str, *, cached: bool) -> Advice:
        """(option, value, reason) for each.

        Args:
            plan: as commands/plan.py prints it.
            rows: the size of the variables' rows, in words; "" where none are kept.
            cached: they fit into the memory that is left.
        """


def _has_label_signal(cls: type[TrainingMethod]) -> bool:
    """Whether the probe can ask a stage between two others what it was trained with."""
    between = Place(first=False, last=False, shapes=((1, 1, 1), (1, 1, 1)), first_block=1)
    if cls().variables(between):
        return issubclass(cls, Compared)
    return issubclass(cls, Uses) or (issubclass(cls, Compared) and issubclass(cls, Makes))


def delay(method: TrainingMethod, stage: int, stages: int) -> float:
    """How many updates old a gradient is on stage number `stage`."""
    return method.delay(stage, stages) if isinstance(method, InFlight) else 0.0


def flights(method: TrainingMethod, stage: int, stages: int) -> float:
    """How many mini-batches are in flight on stage number `stage` between two steps."""
    return method.flights(stage, stages) if isinstance(method, InFlight) else 0.0


def sweeps(method: TrainingMethod) -> tuple[Callable[[Stage, Aux, Batch], Step], ...]:
    """The passes over all mini-batches that make an epoch."""
    return method.sweeps() if isinstance(method, Sweeps) else (method.step,)


def visits(method: TrainingMethod, batches: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """The visits of a parallel epoch, from its mini-batches of sample ids."""
    return method.visiting_order(batches) if isinstance(method, Revisits) else batches


def own_variables(method: TrainingMethod, place: Place) -> list[Variable]:
    """The method's variables that a stage at this place keeps rows of."""
    return [v for v in method.variables(place) if v.on(place)]
