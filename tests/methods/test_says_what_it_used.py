"""A method whose parallel epochs have no label signal cannot be declared."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from hpcsplit.methods.contract import Aux, Batch, Step, StepResult, Tally, TrainingMethod, Variable, method
from hpcsplit.stage.stage import Place, Stage
from hpcsplit.wire.port import PREV, Recv, Send


@dataclass(frozen=True)
class Forgetful(TrainingMethod):
    """It trains, and nobody knows with what."""

    def variables(self, place: Place) -> tuple[Variable, ...]:
        return ()

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        yield from ()
        return StepResult(Tally(batch.size))


@dataclass(frozen=True)
class Says(Forgetful):
    def used(self, stage: Stage) -> tuple[Tensor, Tensor] | None:
        return None


@dataclass(frozen=True)
class Keeps(Forgetful):
    def variables(self, place: Place) -> tuple[Variable, ...]:
        return () if place.first else (Variable("lam", "input", "forward", copy_to=PREV),)


@dataclass(frozen=True)
class Compares(Keeps):
    def local_input(self, stage: Stage, aux: Aux) -> Tensor:
        return aux["lam"]

    def target(self, stage: Stage, aux: Aux) -> Tensor:
        return aux["next_lam"]

    def adjoint(self, stage: Stage, aux: Aux, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class NoTarget(Compares):
    target = None  # type: ignore[assignment]


class Dropped(Compares):
    """As a method that keeps its variables no more."""

    variables = Forgetful.variables


class Makes(Dropped):
    def made(self, stage: Stage, batch: Batch) -> Generator[Send | Recv, Any, Aux]:
        yield from ()
        return {}


class MakesAndForgets(Forgetful):
    made = Makes.made


class UsesBesidesVariables(Keeps):
    """`used` is never asked where there are variables."""

    used = Says.used


@pytest.mark.parametrize("forgetful", [Forgetful, Keeps, NoTarget, Dropped, MakesAndForgets, UsesBesidesVariables])
def test_a_method_that_does_not_say_what_it_has_used_is_refused_when_it_is_declared(
    forgetful: type[TrainingMethod],
) -> None:
    said = rf"{forgetful.__name__}, @method\('forgetful'\), does not say what its parallel epochs have used: define "
    with pytest.raises(TypeError, match=said):
        method("forgetful")(forgetful)
    assert method("exact", parallel=False)(forgetful) is forgetful
    assert method("alone", stages=1)(forgetful) is forgetful


@pytest.mark.parametrize("says", [Says, Compares, Makes])
def test_one_that_says_it_is_taken(says: type[TrainingMethod]) -> None:
    assert method("says")(says) is says
    assert method("says", stages=4)(says) is says
