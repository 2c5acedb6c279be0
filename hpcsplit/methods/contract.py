"""What a training method is: per-sample variables, one step of one stage, and the adjoint it puts at a stage's output.

A method is one file in this folder: a frozen dataclass decorated with `@method("name")`, whose `option(...)` fields are
its keys in the [method] section.  It sees one stage and its neighbours PREV and NEXT; ranks, files, epochs and devices
are the engine's business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch

from hpcsplit.split.stage import Stage
from hpcsplit.terms.resample import Shape, average, cells
from hpcsplit.wire.port import Recv, Send, Side

Aux = Mapping[str, torch.Tensor]
Class = TypeVar("Class", bound=type)


def method(name: str, *, parallel: bool = True) -> Callable[[Class], Class]:
    """Mark a class as the training method `name`; `parallel=False` says that its every epoch is exact."""

    def mark(cls: Class) -> Class:
        cls.name, cls.parallel = name, parallel  # type: ignore[attr-defined]
        return cls

    return mark


@dataclass(frozen=True)
class Variable:
    """One tensor per training sample at a boundary of a stage.

    Attributes:
        boundary: at the stage's "input" (stages 1 … K-1) or "output" (stages 0 … K-2).
        start: its value at each switch to parallel epochs: the activation there ("forward") or "zero".
        copy_to: the neighbour that computes with it too; it finds it as "next_<name>" or "prev_<name>".
        factor: 2 stores one value per 2 x 2 pixels.
    """

    name: str
    boundary: Literal["input", "output"]
    start: Literal["forward", "zero"]
    copy_to: Side | None = None
    factor: int = 1

    def on(self, *, first: bool, last: bool) -> bool:
        """Whether a stage that is the first or the last one, or both, owns the variable."""
        return not (first if self.boundary == "input" else last)

    def row_shape(self, shape_in: Shape, shape_out: Shape) -> Shape:
        """Shape of one sample's stored row, given the stage's boundary shapes."""
        return cells(shape_in if self.boundary == "input" else shape_out, self.factor)

    def start_rows(self, activation: torch.Tensor) -> torch.Tensor:
        """The stored form of an activation (B, *boundary shape)."""
        return average(activation.float(), self.factor)


@dataclass(frozen=True)
class Message:
    """One float32 tensor that a step sends across every boundary, one value a cell of `factor` x `factor` pixels."""

    side: Side
    factor: int = 1


@dataclass(frozen=True)
class Batch:
    """A mini-batch as one stage sees it: images `x` on the first stage, labels `y` on the last; empty elsewhere.

    `total` is the number of training samples that it was taken from.
    """

    ids: Any
    size: int
    x: torch.Tensor = torch.empty(0)  # noqa: RUF009
    y: torch.Tensor = torch.empty(0)  # noqa: RUF009
    total: int = 0


@dataclass
class Tally:
    """Sums over samples that a step reports; the engine adds them up over an epoch.

    `terms` are the parts of this stage's loss, by name.  `gap_sq` and `aux_sq` are ‖λ − x‖² and ‖λ‖² of the boundary
    behind this stage: their quotient is the squared relative constraint violation there.
    """

    samples: int = 0
    terms: dict[str, float] = field(default_factory=dict)
    gap_sq: float = 0.0
    aux_sq: float = 0.0

    def add(self, other: Tally) -> None:
        self.samples += other.samples
        for name, value in other.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        self.gap_sq += other.gap_sq
        self.aux_sq += other.aux_sq


@dataclass(frozen=True)
class StepResult:
    """What a step hands back: new rows of the variables that it changed, and its tally."""

    tally: Tally
    aux: Aux = field(default_factory=dict)


Step = Generator[Send | Recv, Any, StepResult]


class TrainingMethod(Protocol):
    """The interface that the engine drives."""

    def variables(self) -> tuple[Variable, ...]:
        """The per-sample variables, the same on every stage that has the boundary."""
        ...

    def messages(self) -> tuple[Message, ...]:
        """What a step sends, the copies of variables apart."""
        ...

    def at(self, parallel_epoch: int) -> TrainingMethod:
        """The method as it stands in the given parallel epoch (0, 1, …): coefficients may follow a schedule."""
        ...

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        """One mini-batch on one stage.  Writes nothing but the stage's own weights."""
        ...

    def local_input(self, stage: Stage, aux: Aux) -> torch.Tensor:
        """What a stage that is not the first is trained on, (B, *in_shape)."""
        ...

    def target(self, stage: Stage, aux: Aux) -> torch.Tensor:
        """The variable that stands for the output of a stage that is not the last, (B, *out_shape)."""
        ...

    def adjoint(self, stage: Stage, aux: Aux, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the method puts in place of ∂φ/∂x at the output x of a stage that is not the last, per sample, and the
        penalty part of it alone; both (B, *out_shape)."""
        ...
