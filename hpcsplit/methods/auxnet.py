"""Auxiliary variables made by a small network of each stage instead of being kept: AuxNet.

Sun et al., "Layer-Parallel Training of Residual Networks with Auxiliary-Variable Networks" (arXiv 2112.05387), the
successor of DS-SPH.  Stage k ≥ 1 has a network A_k of low capacity that makes its input from the image itself,

    λ_k = A_k(x^0),

so nothing is stored, the image may be augmented, and no stage waits for another's forward pass.  Weights and λ then
take the steps (28)-(30) of DS-SPH (penalty.py), and A_k learns to reproduce the corrected λ:

    θ_k   descends   mean ‖A_k(x^0; θ_k) − λ_k^new‖²      over mini-batch and elements.

With `multiplier` it makes κ_k too, and learns κ_k^new of (30): the augmented Lagrangian.

Known from the paper's abstract are the AuxNet, what it makes and what it reproduces, penalty and AL.  Guessed here:
  * A_k is a convolution at full resolution, one of stride 2 for each halving up to the boundary, each with BatchNorm
    and ReLU, and a linear convolution; two fully connected layers where the boundary is a vector.
  * κ_k comes from more output channels of the same network.
  * A_k learns by SGD with momentum 0.9, with `aux_lr` times the learning rate of the weights.
  * In the first `aux_warmup` steps only the AuxNets learn, each the output of the stage before it on that stage's own
    input, and κ = 0: an A_k that knows nothing would spoil what exact epochs have taught.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hpcsplit.config.option import option
from hpcsplit.methods.contract import Aux, Batch, Step, StepResult, Tally, method
from hpcsplit.methods.penalty import Passing
from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Shape, Stage
from hpcsplit.terms.resample import average, cells
from hpcsplit.wire.port import NEXT, PREV, Recv, Send

MOMENTUM = 0.9


@method("auxnet", augments=True, images=True)
@dataclass(frozen=True)
class AuxNet(Passing):
    """Penalty or augmented Lagrangian on variables that a small network makes from the image (AuxNet)."""

    aux_width: int = option(32, "channels or neurons of the auxiliary network", low=1, high=100_000)
    aux_lr: float = option(1.0, "learning rate of the auxiliary network over that of the weights", above=0.0)
    aux_warmup: int = option(100, "first steps in which only the auxiliary networks learn", unit="steps", low=0)

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        kept = stage.carry.stage.below("auxnet/")
        steps = int(kept.get("steps", torch.zeros(()))) + 1
        kept["steps"] = torch.tensor(steps)
        made = {} if stage.first else self._make(stage, batch.x)
        aux = yield from self.passed_on(stage, batch.size, made)
        if steps <= self.aux_warmup and stage.count > 1:
            result = yield from self._first_steps(stage, aux, batch)
        else:
            result = yield from super().step(stage, aux, batch)
        if made:
            self._learn(stage, made, result.aux)
        return StepResult(result.tally)

    def made(self, stage: Stage, batch: Batch) -> Generator[Send | Recv, Any, Aux]:
        with torch.no_grad():
            mine = {} if stage.first else self._make(stage, batch.x)
        return (yield from self.passed_on(stage, batch.size, mine))

    def _first_steps(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        """Only the AuxNets learn, and the weights stay: λ^new is the activation that it stands for."""
        with stage.statistics_kept():
            x = stage.infer(batch.x if stage.first else self.local_input(stage, aux)).to(stage.wide)
        tally = Tally(batch.size)
        if stage.last:
            tally.count("phi", stage.loss(x, batch.y))
        else:
            yield Send(NEXT, "x", average(x, self.downsample))
        if stage.first:
            return StepResult(tally)
        x_prev = yield stage.receive(PREV, "x", batch.size, wide=True, factor=self.downsample)
        return StepResult(tally, self.begun(x_prev))

    def _make(self, stage: Stage, images: Tensor) -> dict[str, Tensor]:
        """A_k(x^0): λ, and κ with `multiplier`, (B, *stored shape) each; its first weights go into the carry."""
        boundary = cells(stage.in_shape, self.downsample)
        net = auxiliary_network(tuple(images.shape[1:]), boundary, self.aux_width, len(self.names))
        if not (weights := _weights(stage)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(stage.place.first_block)
                fresh = copy.deepcopy(net).to_empty(device="cpu")
                for layer in fresh.modules():
                    if callable(reset := getattr(layer, "reset_parameters", None)):
                        reset()
            weights.update({n: p.detach().to(stage.device, stage.wide, copy=True) for n, p in fresh.named_parameters()})
        ready = {name: w.requires_grad_(torch.is_grad_enabled()) for name, w in weights.items()}
        values = functional_call(net, ready, (images.to(stage.wide),))
        return dict(zip(self.names, values.chunk(len(self.names), dim=1), strict=True))

    def _learn(self, stage: Stage, made: dict[str, Tensor], new: Aux) -> None:
        """One step of SGD with momentum towards the corrected variables."""
        loss = torch.stack([F.mse_loss(made[name], new[name].detach()) for name in made]).sum()
        weights, momenta = _weights(stage), stage.carry.stage.below("auxnet/v/")
        for name, slope in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            momenta[name] = MOMENTUM * momenta.get(name, torch.zeros_like(slope)) + slope
            weights[name] = weights[name].detach() - self.aux_lr * stage.lr * momenta[name]


def _weights(stage: Stage) -> Carry:
    """Those of the auxiliary network."""
    return stage.carry.stage.below("auxnet/w/")


@cache
def auxiliary_network(image: Shape, boundary: Shape, width: int, outputs: int) -> nn.Sequential:
    """A_k from images (B, *image) to `outputs` times as many channels as the boundary has; weights on "meta".  Its
    BatchNorm layers keep no statistics: it runs in training only.  Convolutions make feature maps of images; all else
    is made by a hidden layer."""
    with torch.device("meta"):
        if len(boundary) != 3 or len(image) != 3:
            hidden = [nn.Flatten(), nn.Linear(math.prod(image), width), nn.ReLU()]
            last = nn.Linear(width, outputs * math.prod(boundary))
            return nn.Sequential(*hidden, last, nn.Unflatten(1, (outputs * boundary[0], *boundary[1:])))
        halvings = max(0, round(math.log2(image[1] / boundary[1])))
        layers: list[nn.Module] = []
        for number in range(1 + halvings):
            layers += [
                nn.Conv2d(width if number else image[0], width, 3, 2 if number else 1, 1, bias=False),
                nn.BatchNorm2d(width, track_running_stats=False),
                nn.ReLU(),
            ]
        layers += [nn.AdaptiveAvgPool2d(boundary[1:]), nn.Conv2d(width, outputs * boundary[0], 3, padding=1)]
        return nn.Sequential(*layers)
