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
from hpcsplit.methods.contract import Aux, Batch, Step, StepResult, Tally, TrainingMethod, Variable, method
from hpcsplit.methods.layerwise import descend, input_step, linear, linear_layers, sum_up
from hpcsplit.stage.stage import Place, Stage
from hpcsplit.terms.quantise import pack, part_shapes, rounded, unpack
from hpcsplit.terms.steps import cross_entropy_minimiser, relu_minimiser
from hpcsplit.wire.port import NEXT, PREV, Recv, Send, Side

Rows = torch.Tensor


@method("pdadmm", full_batch=True, network="mlp")
@dataclass(frozen=True)
class PdAdmm(TrainingMethod):
    """Layer-wise parallel ADMM for feed-forward networks (pdADMM); an epoch is one full-batch iteration."""

    rho: float = option(1.0, "coefficient ρ of p = q", above=0.0)
    nu: float = option(0.001, "coefficient ν of the distances of z and q from the layer", above=0.0)
    tolerance: float = option(1e-4, "FISTA ends when no sample's slope at z_L is longer", above=0.0)
    fista_steps: int = option(200, "and after so many steps in any case", unit="steps", low=1)
    exchange: str = option("float32", "bits of p and q", choices=("float32", "float16", "int8"))
    grow: tuple[int, ...] = option(
        (),
        "hidden layers in training, phase by phase; empty: all from the start",
        low=1,
        refused_if={
            "not increasing(method.grow) or max(method.grow) != model.depth": "method.grow = {method.grow} must be "
            "increasing and end with model.depth = {model.depth}, the number of hidden layers",
            "0 < schedule.warmup": "schedule.warmup = {schedule.warmup}: exact epochs would train the layers that "
            "method.grow adds later as the identity; set schedule.warmup = 0, or leave method.grow out",
        },
    )
    grow_every: int = option(20, "iterations of each phase but the last", unit="iterations", low=1)
    patience: int = option(10, "stop when the objective has risen so often in a row", unit="iterations", low=1)
    phase: int = 0

    def variables(self, place: Place) -> tuple[Variable, ...]:
        layers, own = len(place.shapes) - 1, []
        for j, n in enumerate(range(place.first_block, place.first_block + layers)):
            if n:
                own.append(Variable(f"p{n}", j, "own"))
            own.append(Variable(f"z{n}", j + 1, "own"))
            if j + 1 < layers or not place.last:
                own += [Variable(f"q{n}", j + 1, "own"), Variable(f"u{n}", j + 1, "zero")]
        return tuple(own)

    def at(self, parallel_epoch: int) -> PdAdmm:
        return dataclasses.replace(self, phase=min(parallel_epoch // self.grow_every, max(len(self.grow) - 1, 0)))

    def restarts(self, parallel_epoch: int) -> bool:
        return self.at(parallel_epoch).phase != self.at(max(parallel_epoch - 1, 0)).phase

    def prepare(self, stage: Stage) -> None:
        for n, layer in zip(stage.block_numbers, linear_layers(stage), strict=True):
            if self.grow and self.grow[0] <= n < stage.net_blocks - 1:
                nn.init.eye_(layer.weight)
                nn.init.zeros_(layer.bias)

    def in_training(self, stage: Stage) -> list[bool]:
        """Which layers of the stage take part in this phase."""
        return [not self.grow or n < self.grow[self.phase] or n == stage.net_blocks - 1 for n in stage.block_numbers]

    def first_rows(self, stage: Stage, x: Rows, g: Rows) -> Aux:
        stage.carry.pop("objective", None)  # of other variables
        rows, exact = {}, x.flatten(1).to(stage.wide)  # what is not rounded yet, for a stage behind a cut gets no more
        for n, layer in zip(stage.block_numbers, linear_layers(stage), strict=True):
            p = exact
            if n:
                p = rows[f"p{n}"] = self.kept(exact)
            rows[f"z{n}"] = linear(layer, p)
            if n + 1 < stage.net_blocks:
                exact = (rows[f"z{n}"] if p is exact else linear(layer, exact)).relu()
                rows[f"q{n}"] = self.kept(exact)
        return rows

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        block = Block(self, stage, aux, batch)
        yield from block.exchange_p()
        for j in block.active:
            block.move_z(j)
            if j != block.head:
                block.move_q_and_u(j)
        block.measure()
        yield from block.exchange_q_and_u()
        for j in block.active:
            if not (stage.first and j == 0):  # the images stay
                block.move_p(j)
            block.sum_up(j)
        return StepResult(Tally(batch.size, block.terms), block.rows(aux))

    def close(self, stage: Stage) -> Mapping[str, float]:
        step_sq, kept_by_layer = 0.0, map(stage.carry.block, stage.block_numbers)
        for kept, layer, taking_part in zip(kept_by_layer, linear_layers(stage), self.in_training(stage), strict=True):
            if taking_part and (stage.last or not stage.frozen):
                step_sq += descend(kept, layer, self.nu)
            else:
                kept.clear()
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

    def kept(self, rows: Rows) -> Rows:
        """A new p or q: what a message of it can hold."""
        return rows if self.exchange == "float32" else rounded(rows, self.exchange)

    def give(self, side: Side, name: str, rows: Rows) -> Generator[Send, Any, None]:
        parts = (rows,) if self.exchange == "float32" else pack(rows, self.exchange)
        for n, part in enumerate(parts):
            yield Send(side, f"{name}{n}", part)

    def take(self, side: Side, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Generator[Recv, Any, Rows]:
        if self.exchange == "float32":
            rows: Rows = yield Recv(side, f"{name}0", shape, dtype)
            return rows
        parts = []
        for n, (part, kind) in enumerate(part_shapes(shape, self.exchange)):
            parts.append((yield Recv(side, f"{name}{n}", part, kind)))
        return unpack(tuple(parts), self.exchange, dtype)

    def local_input(self, stage: Stage, aux: Aux) -> Rows:
        return aux[f"p{stage.block_numbers[0]}"]

    def target(self, stage: Stage, aux: Aux) -> Rows:
        return aux[f"q{stage.block_numbers[-1]}"]

    def adjoint(self, stage: Stage, aux: Aux, x: Rows) -> tuple[Rows, Rows]:
        pull = self.nu * (x - self.target(stage, aux))
        return pull, pull


class Block:
    """The variables of a block of samples at the layers of one stage, and their steps; layers count from 0 here.

    p[j] is the input of layer j, p[j + 1] that of the next one, in the next stage perhaps; q[j - 1] and u[j - 1] stand
    before layer j, with -1 in the stage before.  Layers that are not in training yet (`active` has the others) hand on
    what they are given.
    """

    def __init__(self, method: PdAdmm, stage: Stage, aux: Aux, batch: Batch) -> None:
        self.method, self.stage, self.batch = method, stage, batch
        self.layers = linear_layers(stage)
        self.active = [j for j, taking_part in enumerate(method.in_training(stage)) if taking_part]
        self.head = len(self.layers) - 1 if stage.last else None
        self.p, self.z, self.q, self.u = (
            {j: aux[f"{name}{n}"] for j, n in enumerate(stage.block_numbers) if f"{name}{n}" in aux} for name in "pzqu"
        )
        if stage.first:
            self.p[0] = batch.x.flatten(1)
        self.r: dict[int, Rows] = {}  # z − W p − b
        self.terms: dict[str, float] = {"step_sq": 0.0}

    def rows(self, aux: Aux) -> Aux:
        """The new rows of the variables that the stage keeps."""
        families = zip("pzqu", (self.p, self.z, self.q, self.u), strict=True)
        first = self.stage.place.first_block
        values = {f"{name}{first + j}": value for name, family in families for j, value in family.items()}
        return {name: values[name] for name in aux}

    def exchange_p(self) -> Generator[Send | Recv, Any, None]:
        """p of the next layer for every layer."""
        stage, count = self.stage, len(self.layers)
        waits = 0 not in self.active
        if not (stage.first or waits):
            yield from self.method.give(PREV, "p", self.p[0])
        if not stage.last:
            self.p[count] = yield from self.method.take(NEXT, "p", (self.batch.size, *stage.out_shape), stage.wide)
        for j in reversed(range(count)):
            if j not in self.active:
                self.p[j] = self.p[j + 1]
        if waits:
            yield from self.method.give(PREV, "p", self.p[0])

    def exchange_q_and_u(self) -> Generator[Send | Recv, Any, None]:
        """q and u of the layer before for every layer."""
        stage, shape = self.stage, tuple(self.p[0].shape)
        waits = all(j == self.head for j in self.active)
        if not waits:
            yield from self._hand_on_q_and_u()
        if not stage.first:
            self.q[-1] = yield from self.method.take(PREV, "q", shape, stage.wide)
            self.u[-1] = yield stage.receive(PREV, "u", self.batch.size, wide=True)
        if waits:
            yield from self._hand_on_q_and_u()

    def _hand_on_q_and_u(self) -> Generator[Send, Any, None]:
        for j in range(len(self.layers)):
            if j not in self.active:
                self.q[j], self.u[j] = self.q[j - 1], self.u[j - 1]
        if not self.stage.last:
            end = len(self.layers) - 1
            yield from self.method.give(NEXT, "q", self.q[end])
            yield Send(NEXT, "u", self.u[end])

    def move_z(self, j: int) -> None:
        a, m, y = linear(self.layers[j], self.p[j]), self.method, self.batch.y
        if j == self.head:
            best = cross_entropy_minimiser(a, y, m.nu, tol=m.tolerance, max_iterations=m.fista_steps, start=self.z[j])
            new = best.z
        else:
            new = relu_minimiser(a, self.q[j])
        self._move(self.z, j, new)
        self.r[j] = new - a

    def move_q_and_u(self, j: int) -> None:
        rho, nu = self.method.rho, self.method.nu
        new = self.method.kept((rho * self.p[j + 1] + self.u[j] + nu * self.z[j].relu()) / (rho + nu))
        self._move(self.q, j, new)
        self.u[j] = self.u[j] + rho * (self.p[j + 1] - new)

    def move_p(self, j: int) -> None:
        rho, nu, layer = self.method.rho, self.method.nu, self.layers[j]
        slope = self.u[j - 1] + rho * (self.p[j] - self.q[j - 1]) - nu * self.r[j] @ layer.weight.detach()
        moved, more = input_step(self.p[j], slope, layer, nu, rho)
        new = self.method.kept(moved)
        self._move(self.p, j, new)
        self.r[j] = self.r[j] + more if new is moved else self.z[j] - linear(layer, new)

    def sum_up(self, j: int) -> None:
        """What the layer's W and b need at the end of the iteration."""
        sum_up(self.stage.carry.block(self.stage.block_numbers[j]), self.p[j], self.method.nu * self.r[j])

    def measure(self) -> None:
        """This stage's part of L_ρ, and ‖p − q‖²."""
        rho, nu = self.method.rho, self.method.nu
        hidden = [j for j in self.active if j != self.head]
        gaps = {j: self.p[j + 1] - self.q[j] for j in hidden}
        parts = [nu / 2 * self.r[j].square().sum() for j in self.active]
        parts += [nu / 2 * (self.q[j] - self.z[j].relu()).square().sum() for j in hidden]
        parts += [(self.u[j] * gaps[j]).sum() + rho / 2 * gaps[j].square().sum() for j in hidden]
        if self.head is not None:
            parts.append(self.stage.loss(self.z[self.head], self.batch.y).sum())
            self.terms["phi"] = float(parts[-1])
        self.terms["objective"] = sum(map(float, parts))
        self.terms["residual_sq"] = sum(float(gap.square().sum()) for gap in gaps.values())

    def _move(self, values: dict[int, Rows], j: int, new: Rows) -> None:
        """A new value; its squared step is counted, for k · (squared step) → 0."""
        self.terms["step_sq"] += float((new - values[j]).square().sum())
        values[j] = new
