"""Penalty and augmented Lagrangian on variables that no store keeps: a stage has them itself and passes them on."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hpcsplit.config.option import option
from hpcsplit.methods.contract import Aux, Variable
from hpcsplit.methods.penalty import AugmentedLagrangian, Penalty
from hpcsplit.stage.stage import Place, Stage
from hpcsplit.wire.port import NEXT, PREV, Recv, Send


@dataclass(frozen=True)
class Passing(AugmentedLagrangian):
    """The steps (28)-(30) of DS-SPH; in each of them stage k gives its λ_k (and κ_k) to stage k - 1."""

    multiplier: bool = option(False, "κ, too: the augmented Lagrangian")

    def variables(self, place: Place) -> tuple[Variable, ...]:
        return ()

    @property
    def names(self) -> tuple[str, ...]:
        return ("lam", "kappa") if self.multiplier else ("lam",)

    def correct(
        self, stage: Stage, lam: torch.Tensor, kappa: torch.Tensor | None, g: torch.Tensor, x_prev: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        correct = Penalty.correct if kappa is None else AugmentedLagrangian.correct
        return correct(self, stage, lam, kappa, g, x_prev)

    def passed_on(self, stage: Stage, size: int, own: Mapping[str, torch.Tensor]) -> Generator[Send | Recv, Any, Aux]:
        """The stage's own variables of `size` samples and, from the next one, that stage's, without graphs."""
        aux = {name: value.detach() for name, value in own.items()}
        for name in self.names:
            if not stage.first:
                yield Send(PREV, name, aux[name])
        for name in self.names:
            if not stage.last:
                aux[f"next_{name}"] = yield stage.receive(NEXT, name, size, wide=True, factor=self.downsample)
        return aux
