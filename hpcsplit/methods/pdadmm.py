"""pdADMM: parallel deep learning by the alternating direction method of multipliers, every layer at once, full batch.

Wang, Chai, Cheng, Zhao, "Toward Model Parallelism for Deep Neural Network based on Gradient-free ADMM Framework", ICDM
2020.  For a feed-forward network of layers l = 1 … L with input p_l, p_1 = x, linear output z_l, free output q_l and
multiplier u_l of p_{l+1} = q_l, f = ReLU, R the cross-entropy summed over the samples,

    L_ρ = R(z_L; y) + ν/2 Σ_{l≤L} ‖z_l − W_l p_l − b_l‖² + ν/2 Σ_{l<L} ‖q_l − f(z_l)‖²
          + Σ_{l<L} [ ⟨u_l, p_{l+1} − q_l⟩ + ρ/2 ‖p_{l+1} − q_l‖² ].

One iteration, every step with the newest values of the steps above it, all layers at once:

    p_l ← p_l − (1/τ) ∂L_ρ/∂p_l          each sample's τ is its curvature along the slope, the limit of backtracking
    W_l ← W_l − (1/θ) ∂L_ρ/∂W_l          θ likewise
    b_l ← mean over the samples of z_l − W_l p_l
    z_l ← argmin ‖z − W_l p_l − b_l‖² + ‖q_l − f(z)‖²      in closed form;  z_L by FISTA on R + ν/2 ‖z − W_L p_L − b_L‖²
    q_l ← ( ρ p_{l+1} + u_l + ν f(z_l) ) / (ρ + ν)
    u_l ← u_l + ρ (p_{l+1} − q_l)

A pass over the blocks of samples does z, q, u and then the next iteration's p; W and b follow at its end, from sums.
That is the same sequence of steps begun at z: at the start, where z = W p + b, q = p and u = 0, the first p, W and b of
the printed order would not move.  Neighbours exchange p, then q and u; all stages compute at once.

`exchange` rounds every p and q, wherever the network is cut, to what a message of so many bits can hold.

Layer-growing start: `grow = [3, 9]` trains the first 3 hidden layers for `grow_every` iterations while the others are
the identity and absent from L_ρ; then all 9.  The variables start anew from a forward pass where layers are added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hpcsplit.config.option import option
from hpcsplit.methods.contract import (
    Aux,
    Batch,
    Message,
    Step,
    StepResult,
    Tally,
    TrainingMethod,
    Variable,
    method,
)
from hpcsplit.methods.layerwise import Sums, input_step, linear, linear_layers
from hpcsplit.split.stage import Place, Stage
from hpcsplit.terms.proximal import cross_entropy_minimiser
from hpcsplit.terms.quantise import pack, part_shapes, rounded, unpack
from hpcsplit.terms.relu import relu_minimiser
from hpcsplit.wire.port import NEXT, PREV, Recv, Send, Side

Rows = torch.Tensor


@method("pdadmm", full_batch=True, network="mlp")
@dataclass(frozen=True)
class PdAdmm(TrainingMethod):
    """Layer-wise parallel ADMM for feed-forward networks (pdADMM); an epoch is one full-batch iteration."""

    rho: float = option(1.0, "coefficient ρ of p = q", above=0.0)
    nu: float = option(0.01, "coefficient ν of the distances of z and q from the layer", above=0.0)
    tolerance: float = option(1e-4, "FISTA ends when no sample's slope at z_L is longer", above=0.0)
    fista_steps: int = option(200, "and after so many steps in any case", unit="steps", low=1)
    exchange: str = option("float32", "bits of p and q", choices=("float32", "float16", "int8"))
    grow: tuple[int, ...] = option((), "hidden layers in training, phase by phase; empty: all from the start", low=1)
    grow_every: int = option(20, "iterations of each phase but the last", unit="iterations", low=1)
    patience: int = option(10, "stop when the objective has risen so often in a row", unit="iterations", low=1)
    phase: int = 0

    def variables(self, place: Place) -> tuple[Variable, ...]:
        layers, own = len(place.shapes) - 1, []
        for j in range(layers):
            if j or not place.first:
                own.append(Variable(f"p{j}", j, "own"))
            own.append(Variable(f"z{j}", j + 1, "own"))
            if j + 1 < layers or not place.last:
                own += [Variable(f"q{j}", j + 1, "own"), Variable(f"u{j}", j + 1, "zero")]
        return tuple(own)

    def messages(self) -> tuple[Message, ...]:
        itemsize, scale = {"float32": (4, 0), "float16": (2, 0), "int8": (1, 2)}[self.exchange]
        return (Message(PREV, 1, itemsize, scale), Message(NEXT, 1, itemsize, scale), Message(NEXT))

    # ------------------------------------------------------------------------------------------------ growing

    def at(self, parallel_epoch: int) -> PdAdmm:
        return dataclasses.replace(self, phase=min(parallel_epoch // self.grow_every, max(len(self.grow) - 1, 0)))

    def restarts(self, parallel_epoch: int) -> bool:
        return self.at(parallel_epoch).phase != self.at(max(parallel_epoch - 1, 0)).phase

    def prepare(self, stage: Stage) -> None:
        for j, layer in enumerate(linear_layers(stage)):
            if self.grow and self.grow[0] <= stage.first_block + j < stage.net_blocks - 1:
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)

    def in_training(self, stage: Stage) -> list[bool]:
        """Which layers of the stage take part in this phase."""
        numbers = range(stage.first_block, stage.first_block + len(stage.blocks))
        return [not self.grow or n < self.grow[self.phase] or n == stage.net_blocks - 1 for n in numbers]

    # ------------------------------------------------------------------------------------------------ an iteration

    def start(self, stage: Stage, x: Rows) -> Aux:
        stage.carry.pop("objective", None)  # of other variables
        rows, exact = {}, x.flatten(1)  # what is not rounded yet, for a stage behind a cut gets no more
        for j, layer in enumerate(linear_layers(stage)):
            p = exact
            if j or not stage.first:
                p = rows[f"p{j}"] = self.kept(exact)
            rows[f"z{j}"] = linear(layer, p)
            if j + 1 < len(stage.blocks) or not stage.last:
                exact = (rows[f"z{j}"] if p is exact else linear(layer, exact)).relu()
                rows[f"q{j}"] = self.kept(exact)
        return rows

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        layers, taking_part, tally = linear_layers(stage), self.in_training(stage), Tally(batch.size)
        new: dict[str, Rows] = dict(aux)
        count, size = len(layers), batch.size

        # p_{l+1} of every layer; absent layers hand it through
        p = [batch.x.flatten(1) if stage.first and j == 0 else aux[f"p{j}"] for j in range(count)]
        handed = not taking_part[0]
        if not stage.first and not handed:
            yield from self.give(PREV, "p", p[0])
        if not stage.last:
            p.append((yield from self.take(NEXT, "p", (size, *stage.out_shape), stage.wide)))
        for j in reversed(range(count)):
            if not taking_part[j]:
                p[j] = new[f"p{j}"] = p[j + 1]
        if not stage.first and handed:
            yield from self.give(PREV, "p", p[0])

        residual: list[Rows | None] = [None] * count
        for j, layer in enumerate(layers):
            if taking_part[j]:
                residual[j] = self.outputs(stage, layer, j, p, aux, new, batch, tally)

        # q_{l-1} and u_{l-1} of every layer
        inner = [j for j in range(count) if taking_part[j] and f"q{j}" in new]
        if not stage.last and inner:
            yield from self.hand_on(new[f"q{inner[-1]}"], new[f"u{inner[-1]}"])
        q = u = p[0]
        if not stage.first:
            q = yield from self.take(PREV, "q", tuple(p[0].shape), stage.wide)
            u = yield Recv(PREV, "u", tuple(p[0].shape), stage.wide)
        if not stage.last and not inner:
            yield from self.hand_on(q, u)

        for j, layer in enumerate(layers):
            r = residual[j]
            if r is None:
                new[f"q{j}"], new[f"u{j}"] = q, u
                continue
            if j or not stage.first:
                slope = u + self.rho * (p[j] - q) - self.nu * r @ layer.weight.detach()
                moved, more = input_step(p[j], slope, layer, self.nu, self.rho)
                new[f"p{j}"] = self.kept(moved)
                if self.exchange == "float32":
                    r = r + more
                else:
                    r = new[f"z{j}"] - linear(layer, new[f"p{j}"])
                self.count_step(tally, new[f"p{j}"], aux[f"p{j}"])
            Sums(stage.carry, f"layer{j}").add(new.get(f"p{j}", p[j]), self.nu * r)
            if f"q{j}" in new:
                q, u = new[f"q{j}"], new[f"u{j}"]
        return StepResult(tally, new)

    def outputs(
        self,
        stage: Stage,
        layer: nn.Linear,
        j: int,
        p: list[Rows],
        aux: Aux,
        new: dict[str, Rows],
        batch: Batch,
        tally: Tally,
    ) -> Rows:
        """z, q and u of one layer; z − W p − b."""
        a = linear(layer, p[j])
        if f"q{j}" not in aux:
            best = cross_entropy_minimiser(
                a, batch.y, self.nu, tol=self.tolerance, max_iterations=self.fista_steps, start=aux[f"z{j}"]
            )
            z = best.z
            tally.terms["phi"] = float(stage.loss(z, batch.y).sum())
            objective = tally.terms["phi"]
        else:
            z = relu_minimiser(a, aux[f"q{j}"])
            q = self.kept((self.rho * p[j + 1] + aux[f"u{j}"] + self.nu * z.relu()) / (self.rho + self.nu))
            gap = p[j + 1] - q
            u = aux[f"u{j}"] + self.rho * gap
            new[f"q{j}"], new[f"u{j}"] = q, u
            objective = float((u * gap).sum() + self.rho / 2 * gap.square().sum())
            objective += self.nu / 2 * float((q - z.relu()).square().sum())
            _add(tally, "residual_sq", float(gap.square().sum()))
            self.count_step(tally, q, aux[f"q{j}"])
        self.count_step(tally, z, aux[f"z{j}"])
        new[f"z{j}"] = z
        r = z - a
        _add(tally, "objective", objective + self.nu / 2 * float(r.square().sum()))
        return r

    def close(self, stage: Stage) -> Mapping[str, float]:
        step_sq = 0.0
        for j, (layer, taking_part) in enumerate(zip(linear_layers(stage), self.in_training(stage), strict=True)):
            sums = Sums(stage.carry, f"layer{j}")
            if taking_part and (stage.last or not stage.frozen):
                step_sq += sums.descend(layer, self.nu)
            else:
                sums.forget()
        return {"weights_step_sq": step_sq}

    def verdict(self, stage: Stage, terms: Mapping[str, float]) -> str | None:
        before, rises = stage.carry.get("objective", torch.tensor([torch.inf, 0.0], dtype=torch.float64))
        rises = rises + 1 if terms["objective"] > before else torch.zeros_like(rises)
        stage.carry["objective"] = torch.tensor([terms["objective"], rises], dtype=torch.float64)
        if rises < self.patience:
            return None
        return (
            f"the augmented Lagrangian has risen {int(rises)} times in a row, to {terms['objective']:.6g} a sample: "
            f"raise method.rho = {self.rho:g} or lower method.nu = {self.nu:g} (method.patience = {self.patience})"
        )

    # ------------------------------------------------------------------------------------------------ messages

    def kept(self, rows: Rows) -> Rows:
        """A new p or q: what a message of it can hold."""
        return rows if self.exchange == "float32" else rounded(rows, self.exchange)

    def give(self, side: Side, name: str, rows: Rows) -> Generator[Send, Any, None]:
        parts = (rows,) if self.exchange == "float32" else pack(rows, self.exchange)
        for n, part in enumerate(parts):
            yield Send(side, f"{name}{n}", part)

    def take(self, side: Side, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Generator[Recv, Any, Rows]:
        exact = self.exchange == "float32"
        parts = []
        for n, (part, kind) in enumerate(((shape, dtype),) if exact else part_shapes(shape, self.exchange)):
            parts.append((yield Recv(side, f"{name}{n}", part, kind)))
        return parts[0] if exact else unpack(tuple(parts), self.exchange, dtype)

    def hand_on(self, q: Rows, u: Rows) -> Generator[Send, Any, None]:
        yield from self.give(NEXT, "q", q)
        yield Send(NEXT, "u", u)

    # ------------------------------------------------------------------------------------------------ signals

    def local_input(self, stage: Stage, aux: Aux) -> Rows:
        return aux["p0"]

    def target(self, stage: Stage, aux: Aux) -> Rows:
        return aux[f"q{len(stage.blocks) - 1}"]

    def adjoint(self, stage: Stage, aux: Aux, x: Rows) -> tuple[Rows, Rows]:
        pull = self.nu * (x - self.target(stage, aux))
        return pull, pull

    @staticmethod
    def count_step(tally: Tally, now: Rows, before: Rows) -> None:
        """The squared step of one variable, for k · (squared step) → 0."""
        _add(tally, "step_sq", float((now - before).square().sum()))


def _add(tally: Tally, term: str, value: float) -> None:
    tally.terms[term] = tally.terms.get(term, 0.0) + value
