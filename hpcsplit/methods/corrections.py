"""What makes up for the delay of a gradient in the step of a stage's optimizer (delayed.py says where each is from)."""

from __future__ import annotations

import torch

from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Stage


def direction(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> torch.Tensor | None:
    """Along which the optimizer goes if gradients stay away, like `weight`: W − η direction is its step.

    sgd's momentum buffer, or Adam's m̂ / (√v̂ + ε); None before the first step.
    """
    state = optimizer.state.get(weight, {})
    if "exp_avg" not in state:
        moving: torch.Tensor | None = state.get("momentum_buffer")
        return moving
    (b1, b2), done = optimizer.param_groups[0]["betas"], float(state["step"])
    spread = (state["exp_avg_sq"] / (1 - b2**done)).sqrt() + optimizer.param_groups[0]["eps"]
    along: torch.Tensor = state["exp_avg"] / (1 - b1**done) / spread
    return along


def spiked(stage: Stage, rate: float, delay: float) -> None:
    """The optimizer's step as long as momentum m still has it after the delay, and the rest along the gradient."""
    assert stage.optimizer
    momentum = stage.optimizer.param_groups[0]["momentum"]
    decay = {p: group["weight_decay"] for group in stage.optimizer.param_groups for p in group["params"]}
    rest = momentum**delay
    before = {p: p.detach().clone() for p in stage.parameters if p.grad is not None}
    stage.set_lr(rate * rest)
    stage.step()
    for p, w in before.items():
        assert p.grad is not None
        p.data.sub_(p.grad.add(w, alpha=decay[p]), alpha=rate * (1 - rest) / (1 - momentum))
    stage.stepped()


def fed_back(stage: Stage, rate: float, share: float, last: Carry) -> None:
    """The optimizer's step u, and `share` times what it has more than the one before, which `last` keeps by name."""
    before = {name: p.detach().clone() for name, p in stage.trained.items() if p.grad is not None}
    stage.set_lr(rate)
    stage.step()
    for name, p in stage.trained.items():
        if name in before:
            step = p.detach() - before[name]
            if name in last:
                p.data.add_(step - last[name], alpha=share)
            last[name] = step
    stage.stepped()
