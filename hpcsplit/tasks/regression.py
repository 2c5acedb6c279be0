"""Regression: numbers of any shape, by the mean square of a sample's errors.

Reported beside the loss is the coefficient of determination of a whole set, R² = 1 − Σ (y − ŷ)² / Σ (y − ȳ)², with ȳ
the mean of each value over the set: 1 is perfect, 0 as good as ȳ itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hpcsplit.tasks.losses import named
from hpcsplit.tasks.task import Task

_SQUARE = named("mse")


@dataclass(frozen=True)
class Regression(Task):
    """Outputs (B, …) against numbers of the same shape; one number a sample is (B,), its output (B, 1)."""

    def wrong_shape(
        self, shape: tuple[int, ...], image: tuple[int, ...], classes: int, target: tuple[int, ...] = ()
    ) -> str:
        if shape in (target, target or (1,)):
            return ""
        return f"the shape of its targets, {target}" if target else "a vector of one number, as its targets are"

    def own_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _SQUARE(outputs, targets)

    def noted(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        y = targets.double().view_as(outputs)
        return {"error_sq": (outputs.double() - y).square(), "y": y, "y_sq": y.square()}

    def figures(self, sums: Mapping[str, Tensor], loss: float, count: int) -> dict[str, float]:
        spread = float((sums["y_sq"] - sums["y"].square() / count).sum())
        return {"r2": 1.0 - float(sums["error_sq"].sum()) / spread} if spread > 0 else {}
