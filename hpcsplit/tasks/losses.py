"""Losses in place of a task's own: torch's by name, and functions of the user's.

# mylosses.py, in a folder on PYTHONPATH; model.loss = "mylosses:focal"
def focal():
    def loss(outputs, targets):
        log_p = outputs.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
        return -((1 - log_p.exp()) ** 2) * log_p
    return loss
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.errors import ConfigError, HpcsplitError
from hpcsplit.host.blame import line_defined, line_raised, said
from hpcsplit.host.factory import call_factory
from hpcsplit.tasks.catalog import LOSSES

Loss = Callable[[Tensor, Tensor], Tensor]  # of each sample, (B,), from the outputs (B, …) and the task's targets


def named(name: str, *, of_classes: bool = False) -> Loss:
    """torch.nn.functional's loss of each value, its mean over those of a sample.  With `of_classes` targets are labels,
    and the numbers to be learned 1 for the right class, 0 for the others."""
    function: Callable[..., Tensor] = getattr(F, LOSSES[name][0])

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if of_classes and not targets.is_floating_point():
            targets = F.one_hot(targets, outputs.shape[-1])
        each = function(outputs, targets.to(outputs.dtype).view_as(outputs), reduction="none")
        return each.flatten(1).mean(1)

    return loss


def users(name: str) -> Loss:
    """The loss that `factory()` returns, model.loss = "package.module:factory".

    ConfigError, with the line, where it cannot be had or called, now or later, or is no loss of each sample.
    """
    begin = f'model.loss = "{name}"'
    loss = call_factory("model.loss", name)
    if not callable(loss):
        raise ConfigError(
            f"{begin}: the factory returned {type(loss).__name__}; return a function of outputs and targets that gives "
            "the loss of each sample"
        )
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ConfigError(
            f"{begin} has weights of its own, which nothing trains; make them buffers, or blocks of the network"
        )

    def checked(outputs: Tensor, targets: Tensor) -> Tensor:
        if isinstance(loss, nn.Module):
            loss.to(outputs.device)
        try:
            values: Any = loss(outputs, targets)
        except (HpcsplitError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the user's code runs here
            line = line_raised(error) or line_defined(loss if callable(loss) else type(loss))
            raise ConfigError(
                f"{begin} fails for outputs of shape {tuple(outputs.shape)} and targets of shape "
                f"{tuple(targets.shape)} ({said(error)}{f', {line}' if line else ''}); correct it"
            ) from error
        if not isinstance(values, Tensor) or values.shape != outputs.shape[:1]:
            line = line_defined(loss) or line_defined(type(loss))
            shape = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(
                f"{begin} returns {shape} for {len(outputs)} samples{f' ({line})' if line else ''}; return the loss of "
                f'each sample, of shape ({len(outputs)},): reduction="none", and the mean over all dimensions but the '
                "first"
            )
        return values

    return checked
