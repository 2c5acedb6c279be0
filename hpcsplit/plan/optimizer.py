"""An optimizer from the user's own code: optim.name = "package.module:factory".

# myoptim.py, in a folder on PYTHONPATH; any subclass of torch.optim.Optimizer will do
def lion(params, lr, weight_decay):
    return Lion(params, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.99))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hpcsplit.checkpoint.state import load_stage, stage_tensors
from hpcsplit.errors import ConfigError, HpcsplitError
from hpcsplit.host.blame import line_defined, line_raised, said
from hpcsplit.host.factory import find_factory
from hpcsplit.stage.stage import Stage


def users_optimizer(name: str, params: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The result of `factory(params, lr=..., weight_decay=...)` for parameters, or groups of them.  ConfigError, with
    the line, where it is none, or the call fails, or later a step."""
    factory = find_factory("optim.name", name)
    begin = f'optim.name = "{name}"'
    try:
        optimizer = factory(params, lr=lr, weight_decay=weight_decay)
    except Exception as error:  # the user's code runs here
        raise ConfigError(
            f"{begin}: the call {name.partition(':')[2]}(params, lr={lr:g}, weight_decay={weight_decay:g}) failed "
            f"({said(error)}); correct the factory, {line_raised(error) or line_defined(factory)}"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"{begin}: the factory returned {type(optimizer).__name__}; return a torch.optim.Optimizer of these weights"
        )
    plain: Callable[[], Any] = optimizer.step

    def step(closure: None = None) -> None:
        try:
            plain()
        except (HpcsplitError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            line = line_raised(error) or line_defined(type(optimizer))
            raise ConfigError(
                f"{begin} fails in its step ({said(error)}{f', {line}' if line else ''}); correct it"
            ) from error

    optimizer.step = step  # type: ignore[method-assign,assignment]
    return optimizer


def check_optimizer(name: str, make: Callable[[], Stage]) -> None:
    """A few steps of a user's optimizer on the whole network as one stage, which `make` gives, one of them after a
    checkpoint.  ConfigError where it cannot be saved, or goes on otherwise than it would have."""
    begin, ours, theirs = f'optim.name = "{name}"', make(), make()
    for number in range(2):
        _step(ours, number)
    for state in ours.optimizer.state.values() if ours.optimizer else ():
        for key, value in state.items() if isinstance(state, dict) else ():
            known = value is None or isinstance(value, torch.Tensor | int | float)
            if not known or not isinstance(key, str) or set(key) & set("/:@"):
                raise ConfigError(
                    f"{begin} keeps {key!r} of a weight as {type(value).__name__}; a checkpoint has tensors and "
                    "numbers by a plain name: keep it as those"
                )
    load_stage(theirs, stage_tensors(ours))
    for stage in (ours, theirs):
        _step(stage, 2)
    if any(not torch.equal(a, b) for a, b in zip(ours.parameters, theirs.parameters, strict=True)):
        raise ConfigError(
            f"{begin} takes another step after a checkpoint than it would have without a stop: it keeps more than "
            "tensors and numbers of each weight, and numbers of its groups; keep everything there"
        )


def _step(stage: Stage, number: int) -> None:
    torch.manual_seed(number)
    for p in stage.parameters:
        p.grad = torch.randn_like(p)
    stage.update()
