"""Delayed gradients: every stage computes at every step, on gradients that are a few steps old.

Stage k of K takes mini-batch b forward as soon as its input is there, passes the output on at once, and goes backward
when the gradient of b has come back, d steps later.  Nothing waits for a pipeline to run empty, no sample keeps
variables, so mini-batches are augmented as in exact training.  K = 3 in 1F1B order, time to the right, a backward pass
twice as long as a forward one; after the beginning no stage ever waits:

    stage 0   F0 F1 F2 .  .  .  .  B0 -  F3 B1 -  F4 B2 -  F5 B3 -
    stage 1   .  F0 F1 .  .  B0 -  F2 B1 -  F3 B2 -  F4 B3 -  F5 B4
    stage 2   .  .  F0 B0 -  F1 B1 -  F2 B2 -  F3 B3 -  F4 B4 -  F5

    timetable   d            a message has        source
    "1f1b"      K-1-k        part of a step       PipeDream (Narayanan et al. 2019); DDG's and Features Replay's delays
    "step"      2 (K-1-k)    a whole step         Zhang and Abdelrahman 2021

With W_b the stage's weights after b updates, x_b its input and g_b the gradient that came back, a step goes along

    "stash"     ∇_W <g_b, f(W_{b-d}, x_b)>, the weights those of the forward pass: DDG (Huo et al., "Decoupled Parallel
                Backpropagation with Convergence Guarantee", 2018), PipeDream's weight stashing
    "replay"    ∇_W <g_b, f(W_b, x_b)>, forward once more with today's weights (Huo et al., "Training Neural Networks
                Using Features Replay", 2018): no graph is kept, and a step has a third more arithmetic
    "stale"     today's weights on the activations that the forward pass kept (Zhang and Abdelrahman, "Pipelined
                Training with Stale Weights of Deep Convolutional Neural Networks", 2021); autocast's bfloat16 copies of
                the weights stay those of the forward pass
    "2bw"       ∇_W <g_b, f(W_{b-D}, x_b)> with one D = ceil(d / M), d that of stage 0, on every stage, the last one,
                too: all take the same, exact gradient; D is one update with as many micro-batches M as d
                (PipeDream-2BW, Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training", 2021)

Corrections, each off by default (corrections.py):

    predict        forward with W − d η v, where momentum will have carried them (SpecTrain, Chen et al. 2018), or
                   Adam's step (PipeOptim, Guan et al. 2023); with lr_anneal η is the rate that it allows now
    feedback       W + u_b + φ d (u_b − u_{b-1}) for the optimizer's own step u_b: what the step before has lacked, as
                   far as it is known now (error feedback, Zmushko et al. 2026, "One-Step Gradient Delay is Not a
                   Barrier for Large-Scale Asynchronous Pipeline Parallel LLM Pretraining")
    compensation   g + λ g ⊙ g ⊙ (W_b − W_{b-d}) for the stashed gradient g (DC-ASGD, Zheng et al. 2017, eq. (10))
    spike          W − η (m^d v + (1 − m^d) / (1 − m) g): at once what momentum m would have made of g in d steps (spike
                   compensation, Kosson et al., "Pipelined Backpropagation at Scale", 2021)
    lr_anneal      η / (1 + d)^p with p from 1 down to 0 over so many steps (PipeMare's T1, Yang et al. 2021)

The last stage passes its gradient on before it computes those of its own weights (stage/deferred.py), unless "2bw" has
lent it others or schedule.deferred is false: so the stage before it waits less.

d is the delay that a gradient really has: behind the beginning, and behind a drain, the first gradients are younger.

With M = `microbatches` a mini-batch is cut, and its pieces go through the stages in place of the mini-batches above; a
stage adds up their gradients and updates behind the last one.  d counts pieces then: the gradient of piece m is
ceil((d - m) / M) updates old, which `predict` looks ahead, and d / M in the mean over a mini-batch, which `spike` and
`lr_anneal` take for d; `compensation` squares the mean gradient of a piece.  BatchNorm normalises over a piece.
`optim.name` has more that stands old gradients: "nadam" with beta1 = 0.99 (Ajanthan et al., "Nesterov Method for
Asynchronous Pipeline Parallel Optimization", 2025), "muon", and "rotated-adam".

BatchNorm's running statistics take one step a mini-batch, in its first forward pass.  What is in flight is in the
stage's `carry`: inputs, stashed weights, gradients that have arrived.  After a resume the graphs are made again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcsplit.config.option import option
from hpcsplit.config.sections import OptimSection
from hpcsplit.methods import corrections
from hpcsplit.methods.contract import Advice, Aux, Batch, Step, StepResult, Talk, Tally, TrainingMethod, method
from hpcsplit.schedule.timetable import slices
from hpcsplit.stage.batchnorm import FreshStatistics
from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Stage
from hpcsplit.wire.port import NEXT, PREV, Send

_FLIGHTS, _STEPS, _BEFORE, _LAST = "flights", "delayed_steps", "before/", "last/"


@method("delayed", augments=True, in_flight=True)
@dataclass(frozen=True)
class Delayed(TrainingMethod):
    """Back-propagation with gradients that are a few steps old; all stages compute at every step (DDG, PipeDream)."""

    timetable: str = option("1f1b", "gradients K-1-k steps old, or 2(K-1-k) with slack", choices=("1f1b", "step"))
    weights: str = option(
        "stash",
        "of a backward pass: the forward pass's, today's with the forward pass once more, today's as they are, or in "
        "both passes those that all stages have in time",
        choices=("stash", "replay", "stale", "2bw"),
    )
    predict: bool = option(
        False,
        "forward with the weights that sgd's momentum (SpecTrain), adam or adamw (PipeOptim) lead to",
        refused_if={
            "method.weights == 'stale'": 'method.predict = true: with method.weights = "stale" the forward pass has no '
            'weights of its own that could be predicted; take "stash" or "replay"',
            "optim.name != 'adam' and optim.name != 'adamw' and (optim.name != 'sgd' or not 0 < optim.momentum < 1)": ""
            'method.predict = true follows the momentum of sgd, adam or adamw; optim.name = "{optim.name}", '
            "optim.momentum = {optim.momentum:g}. Take one of them, sgd with a momentum below 1, or leave it out",
            "optim.nesterov": "method.predict = true follows the plain momentum of sgd, and optim.nesterov = true "
            "looks ahead by itself; leave one of them out",
        },
    )
    feedback: float = option(
        0.0,
        "φ: how much of what the step before has lacked is made up for (error feedback)",
        low=0.0,
        refused_if={
            "method.spike": "method.feedback = {method.feedback:g} and method.spike = true both make up for the delay "
            "of a step; take one of them"
        },
        later=True,
    )
    compensation: float = option(
        0.0,
        "λ of the delay compensation of stashed gradients (DC-ASGD)",
        low=0.0,
        refused_if={
            "method.weights != 'stash'": "method.compensation = {method.compensation:g} corrects stashed gradients, "
            'method.weights is "{method.weights}"; take "stash", or compensation = 0'
        },
    )
    spike: bool = option(
        False,
        "a gradient steps at once as far as sgd's momentum takes it in the delay (Kosson)",
        refused_if={
            "optim.name != 'sgd' or not 0 < optim.momentum < 1": "method.spike = true follows the momentum of sgd; "
            'optim.name = "{optim.name}", optim.momentum = {optim.momentum:g}. Take sgd with a momentum below 1, or '
            "leave spike out",
            "optim.nesterov": "method.spike = true is made for the plain momentum of sgd, not for optim.nesterov = "
            "true; leave one of them out",
        },
    )
    lr_anneal: int = option(
        0, "steps in which lr / (1 + delay) becomes lr (PipeMare); 0: lr at once", unit="steps", low=0
    )
    microbatches: int = option(
        1,
        "micro-batches of a mini-batch, one update for all of them: a gradient is delayed by so many times less",
        low=1,
        refused_if={
            "0 < data.batch_size < method.microbatches": "method.microbatches = {method.microbatches} is more than "
            "data.batch_size = {data.batch_size}"
        },
        cures={"memory": "raise"},
    )
    epoch_end: str = option("drain", "finish what is in flight, or let it run on", choices=("drain", "run"))

    def delay(self, stage: int, stages: int) -> float:
        return self._uniform(stages) if self.weights == "2bw" else self.flights(stage, stages)

    def flights(self, stage: int, stages: int) -> float:
        return self._behind(stage, stages) / self.microbatches

    def _uniform(self, stages: int) -> int:
        """Of how many updates ago "2bw" takes its weights: of the latest that all stages have in time."""
        return math.ceil(self._behind(0, stages) / self.microbatches)

    def advice(self, optim: OptimSection, plan: Mapping[str, Any], rows: str, *, cached: bool) -> Advice:
        """Fewer updates, and what makes up for the rest."""
        choices, oldest = [], max(plan["delays"])
        if oldest > 1:
            pieces = min(self.microbatches * 2 ** math.ceil(math.log2(oldest)), plan["batch_size"])
            then = oldest * self.microbatches / pieces
            why = f"gradients of stage 0 are {then:g} updates old then, {oldest:g} now"
            choices.append(("method.microbatches", str(pieces), why))
        follows = optim.name == "sgd" and 0 < optim.momentum < 1 and not optim.nesterov and self.weights != "stale"
        if oldest and follows and not (self.predict and self.spike):
            why = "in docs/results.md they win back what old gradients cost in two stages, with method.lr_anneal"
            choices.append(("method.predict, method.spike", "true", why))
        return choices

    def _behind(self, stage: int, stages: int) -> int:
        """So many micro-batches a stage takes forward before it goes backward for the first of them."""
        return (stages - 1 - stage) * (2 if self.timetable == "step" else 1)

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        tally = Tally(batch.size)
        stage.carry[_STEPS] = stage.carry.get(_STEPS, torch.zeros((), dtype=torch.int64)) + 1
        pieces = slices(batch.size, self.microbatches)
        fresh = FreshStatistics(stage) if self.microbatches > 1 else None
        older, age = self._weights(stage, 0) if stage.last and self.weights == "2bw" else (None, 0)
        if stage.last:
            stage.zero_grad()
        for m, piece in enumerate(pieces):
            number, size = stage.position[1] * self.microbatches + m, piece.stop - piece.start
            x = batch.x[piece]
            if not stage.first:
                x = (yield stage.receive(PREV, "x", size, number)).requires_grad_()
            if not stage.last:
                y = self._forward(stage, x, m, batch.size)
                yield Send(NEXT, "x", y.detach(), number)
                if len(_flights(stage)) > self._behind(stage.index, stage.count):
                    yield from self._backward(stage)
                continue
            with stage.deferred.active() if stage.defers else nullcontext():
                y = stage.forward(x, older)
            loss = stage.loss(y, batch.y[piece]).sum()
            tally.count("phi", loss)
            if loss.requires_grad:  # a network may have no weights
                (loss / batch.size).backward()
            if not stage.first:
                assert x.grad is not None
                yield Send(PREV, "g", x.grad, number)
            stage.deferred.finish(stage.between_blocks)  # nobody waits for the rest
        if fresh:
            fresh.step()
        if stage.last:
            for name, weight in (older or {}).items():
                stage.trained[name].grad = weight.grad
            self._update(stage, age, stage.position)
        return StepResult(tally)

    def settle(self, stage: Stage) -> Talk:
        if stage.last:
            return
        flights = _flights(stage)
        behind = min(len(flights), self._behind(stage.index + 1, stage.count))  # still in flight on the next stage, too
        for flight in flights[: len(flights) - behind]:
            kept = _kept(stage, flight)
            if "g" not in kept:
                kept["g"] = yield stage.receive(NEXT, "g", len(kept["y"]), self._number(flight))

    def drain(self, stage: Stage, *, goes_on: bool) -> Talk:
        if goes_on and self.epoch_end == "run":
            yield from self.settle(stage)
            return
        while _flights(stage):
            yield from self._backward(stage)
        if not goes_on:
            for name in [name for name in stage.carry.stage if name.startswith((_BEFORE, _LAST))]:
                del stage.carry.stage[name]

    def used(self, stage: Stage) -> tuple[Tensor, Tensor] | None:
        x, g = (stage.carry.stage.pop(f"used/{name}", None) for name in "xg")
        return None if x is None or g is None else (x, g)

    def _number(self, flight: tuple[int, ...]) -> int:
        """Of a micro-batch's messages."""
        _, step, number, _ = flight
        return step * self.microbatches + number - 1

    def _forward(self, stage: Stage, x: Tensor, m: int, of: int) -> Tensor:
        """Take micro-batch m of a mini-batch of so many samples into flight; the stage's output."""
        age = len({other[:2] for other in _flights(stage)} - {stage.position})  # updates until its own
        weights, age = self._weights(stage, age)
        flight = (*stage.position, stage.passes + 1, of)
        with torch.no_grad() if self.weights == "replay" else nullcontext():
            y = stage.forward(x, None if self.weights == "stale" else weights)
        stage.carry.stage[_FLIGHTS] = torch.tensor([*_flights(stage), flight])
        kept = _kept(stage, flight)
        kept.update(x=x, y=y, age=torch.tensor(age))
        if self.weights != "replay":
            kept.below("w/").update(weights or {})
        return y

    def _weights(self, stage: Stage, age: int) -> tuple[dict[str, Tensor] | None, int]:
        """The weights of a forward pass `age` updates before its own, a copy, and how many updates old they will be;
        None where the stage's own ones do."""
        if self.weights == "replay" and not self.predict:
            return None, age
        back = self._uniform(stage.count) - age if self.weights == "2bw" else 0
        while back and not len(_before(stage, back)):
            back -= 1
        if back:
            weights = {name: w.detach() for name, w in _before(stage, back).items()}
        else:
            weights = self._ahead(stage, age)
        return {name: w.requires_grad_() for name, w in weights.items()}, age + back

    def _ahead(self, stage: Stage, updates: int) -> dict[str, Tensor]:
        """A copy of today's weights, or of those that the optimizer is likely to have made of them after so many."""
        weights = {name: p.detach().clone() for name, p in stage.trained.items()}
        if self.predict and stage.optimizer:
            rate = self._rate(stage, self.delay(stage.index, stage.count))
            for name, p in stage.trained.items():
                if (along := corrections.direction(stage.optimizer, p)) is not None:
                    weights[name].sub_(along, alpha=updates * rate)
        return weights

    def _backward(self, stage: Stage) -> Talk:
        """Receive the gradient of the micro-batch that has been in flight for longest and pass it on; update behind
        the last one of a mini-batch."""
        flight, *rest = _flights(stage)
        kept, sums = _kept(stage, flight), stage.carry.stage.below("sum/")  # over a mini-batch's micro-batches
        x, y, g = kept.pop("x"), kept.pop("y"), kept.pop("g", None)
        share = len(y) / flight[3]
        age = float(kept.pop("age", torch.tensor(self.delay(stage.index, stage.count))))
        ages = share * age + float(stage.carry.stage.pop("age", torch.zeros(())))
        if g is None:
            g = yield stage.receive(NEXT, "g", len(y), self._number(flight))
        before = {name: kept.pop(f"w/{name}", p) for name, p in stage.trained.items()}
        stage.carry.stage[_FLIGHTS] = torch.tensor(rest, dtype=torch.int64)
        if not rest:
            stage.carry.stage.below("used/").update(x=y.detach(), g=g * flight[3])

        stage.zero_grad()
        if y.grad_fn is None:
            x = x.detach().requires_grad_(not stage.first)
            y = self._forward_again(stage, flight, x, before)
        if y.requires_grad:  # a first stage may have no weights
            y.backward(stage.in_own_format(g))
        if not stage.first:
            assert x.grad is not None
            yield Send(PREV, "g", x.grad, self._number(flight))
        ends = not rest or rest[0][:2] != flight[:2]
        for name, p in stage.trained.items():
            mine, others = before[name].grad if p.grad is None else p.grad, sums.pop(name, None)
            if self.compensation and mine is not None:
                mine = mine + self.compensation / share * mine.square() * (p.detach() - before[name].detach())
            if others is not None:
                others = torch.empty_like(p).copy_(others)  # in the format of p, also after a resume
                mine = others if mine is None else others.add_(mine)
            p.grad = mine
            if mine is not None and not ends:
                sums[name] = mine
        if ends:
            self._update(stage, ages, flight[:2])
        else:
            stage.carry.stage["age"] = torch.tensor(ages, dtype=torch.float64)

    def _forward_again(self, stage: Stage, flight: tuple[int, ...], x: Tensor, before: dict[str, Tensor]) -> Tensor:
        """The output with its graph, as a replay, or because a checkpoint could not keep it."""
        epoch, step, number, _ = flight
        if self.weights != "replay":
            for name, p in stage.trained.items():
                before[name] = torch.empty_like(p).copy_(before[name].detach()).requires_grad_()  # in the format of p
        with stage.pass_again(number, (epoch, step)):
            y = stage.forward(x, None if self.weights == "replay" else before)
        if self.weights == "stale":
            for name, p in stage.trained.items():
                before[name].data.copy_(p)
        return y

    def _rate(self, stage: Stage, delay: float) -> float:
        """The learning rate of an update with gradients of this mean delay."""
        power = 1.0 - min(int(stage.carry[_STEPS]) / self.lr_anneal, 1.0) if self.lr_anneal else 0.0
        return stage.lr / math.pow(1 + delay, power)

    def _update(self, stage: Stage, delay: float, position: tuple[int, ...]) -> None:
        """With the gradient of the mini-batch that went forward at this position."""
        if stage.frozen and not stage.last:
            return
        if self.weights == "2bw":
            for back in range(self._uniform(stage.count), 0, -1):
                younger = _before(stage, back - 1) if back > 1 else self._ahead(stage, self._uniform(stage.count))
                _before(stage, back).update(younger)
        lr = stage.lr
        if stage.rate:
            stage.set_lr(stage.rate(*position))
        rate = self._rate(stage, delay)
        corrects = stage.optimizer and self.delay(stage.index, stage.count)
        with self._graphs_kept(stage):
            if self.spike and corrects:
                corrections.spiked(stage, rate, delay)
            elif self.feedback and corrects:
                corrections.fed_back(stage, rate, self.feedback * delay, stage.carry.stage.below(_LAST))
            else:
                stage.set_lr(rate)
                stage.update()
        stage.set_lr(lr)

    def _graphs_kept(self, stage: Stage) -> AbstractContextManager[None]:
        """An update inside leaves graphs valid that have saved the weights: "stale" goes backward with the new ones."""
        if self.weights != "stale":
            return nullcontext()
        return torch.autograd._unsafe_preserve_version_counter(tuple(stage.parameters))  # type: ignore[attr-defined]


def _flights(stage: Stage) -> list[tuple[int, ...]]:
    """(epoch, step, pass, samples of its mini-batch) of what is in flight, the oldest first."""
    return [tuple(flight) for flight in stage.carry.stage.get(_FLIGHTS, torch.empty(0, 4)).tolist()]


def _kept(stage: Stage, flight: tuple[int, ...]) -> Carry:
    return stage.carry.stage.below(f"{'.'.join(map(str, flight))}/")


def _before(stage: Stage, updates: int) -> Carry:
    """The weights before the last so many updates."""
    return stage.carry.stage.below(f"{_BEFORE}{updates}/")
