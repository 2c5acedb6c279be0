"""Optimizers of a user's: good ones, and some with a bug."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """Chen et al. 2023; with counters of each kind that people keep."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "warm": 0.25})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            group["warm"] *= 1.1
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"mean": torch.zeros_like(p), "count": 0, "part": 1 / 3, "late": False}
                    state |= {"rows": torch.zeros(3 * p.numel() + 2), "nothing": None}
                state["count"] += 1
                state["part"] /= 3
                state["rows"] += p.grad.sum()
                along = (0.9 * state["mean"] + 0.1 * p.grad).sign() * (1 + state["part"] + 0.01 * state["rows"][0])
                along *= 1 + group["warm"] / (group["steps"] + state["count"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(along, alpha=0.1 * group["lr"])
                state["mean"].lerp_(p.grad, 0.01)


class Lists(Lion):
    """Keeps a history."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("history", []).append(1)


class Hidden(Lion):
    """Counts where no checkpoint looks."""

    calls = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.data += self.calls
        super().step()


class Misspelt(Lion):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.parameters()  # type: ignore[attr-defined]


def matrices_alone(params: Any, lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.AdamW([p for p in params if p.dim() > 1], lr=lr, weight_decay=weight_decay)


def no_optimizer(params: Any, lr: float, weight_decay: float) -> None:
    return None


def fails(params: Any, lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD(params, learning_rate=lr)  # type: ignore[call-arg]
