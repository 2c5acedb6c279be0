"""gsADMM: gradient splitting by the alternating direction method of multipliers (TSSM, Algorithm 1).

Wang et al., "Tunable Subnetwork Splitting for Model-parallelism of Neural Network Training", 2020.  Per sample, for
stages l = 0 … K-1 with input p_l, free output q_l and multiplier u_l of p_{l+1} = q_l,

    L = s R(x^{K-1}; y) + Σ_{l<K-1} [ s α/2 ‖q_l − f_l(p_l)‖² + ⟨u_l, p_{l+1} − q_l⟩ + ρ/2 ‖p_{l+1} − q_l‖² ].

One step on a mini-batch, all stages at once; three forward passes:

    W_l   one optimizer step on the batch mean of α/2 ‖q_l − f_l(p_l)‖², the last stage of R                 (2), (3)
    p_l ← p_l − (1/τ₂) ( s ∂/∂p_l [own term] + u_{l-1} + ρ (p_l − q_{l-1}) )         with the new W           (4)
    q_l ← ( s α f_l(p_l) + ρ p_{l+1} + u_l ) / ( s α + ρ )                 with the new W, p_l and p_{l+1}    (5)
    u_l ← u_l + ρ (p_{l+1} − q_l)                                              with the new p_{l+1} and q_l   (6)

Algorithm 1 takes a mini-batch for W and prints (4)-(6) without one.  `update = "batch"` moves p, q and u of that very
mini-batch; "set" moves those of all samples, after the W steps of an epoch (after each of them, as printed, where
data.batch_size = 0 makes a mini-batch of the whole set).

(4) is sure to descend only where τ₂ is above the curvature of p's terms, which is ρ + s α ‖∂f_l/∂p_l‖² in a middle
stage: with a τ₂ below it p runs away, and the violation comes near 1.  The paper leaves τ₂ to the user.  With
`backtracking` a middle stage raises it for each sample to the curvature along the step, for one more forward pass.

(6) steps u along the residual, and the label travels in p and q themselves.  `steps = "stationary"` takes u from
stationarity in p, (4) set to zero at p = q, as penalty.py does with κ; what is left moves the values:

    u_{l-1} ← −s ∂/∂p_l [own term],     p_l ← f_{l-1}(p_{l-1}),     q_l ← f_l(p_l) + u_l / (s α)                 (5')

with the new W and the old p: (5') is stationarity in q at p = q.  The W step then follows the slope of the next stage's
own term, one visit old, and α damps how far f may run from where it was taken: with too small an α it runs away.  Two
forward passes; ρ and τ₂ play no part.

s = 1/M is the paper's scaling; tssm.py says why the default is 1.  BatchNorm statistics follow the pass of the W step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hpcsplit.config.option import option
from hpcsplit.methods.contract import Aux, Batch, Step, StepResult, Tally, Variable, method
from hpcsplit.methods.tssm import Splitting, forward_again, share_of, slope, tau_along, train_weights
from hpcsplit.stage.stage import Place, Stage
from hpcsplit.wire.port import NEXT, PREV, Send


@method("gsadmm")
@dataclass(frozen=True)
class GsAdmm(Splitting):
    """Gradient-splitting ADMM with p, q and u at every boundary (TSSM)."""

    alpha: float = option(0.1, "coefficient α of the distance of q from the stage's output", above=0.0)
    rho: float = option(0.1, "coefficient ρ of p = q", above=0.0)
    tau_2: float = option(0.1, "the step of p is 1/τ₂; with τ₂ = ρ p forgets its old value", above=0.0)
    backtracking: bool = option(True, "raise τ₂ of a middle stage to the curvature along each sample's step")
    scaling: str = option("sample", "own terms of one sample, or 1/M of them as printed", choices=("sample", "paper"))
    steps: str = option(
        "printed",
        "of p, q and u: (4) to (6), or u from stationarity in p and the values one visit old",
        choices=("printed", "stationary"),
        later=True,
    )
    update: str = option(
        "batch",
        "p, q, u of a mini-batch with each W step, or of all samples after the epoch's",
        choices=("batch", "set"),
    )

    def variables(self, place: Place) -> tuple[Variable, ...]:
        return (
            Variable("p", "input", "forward"),
            Variable("q", "output", "forward", copy_to=NEXT),
            Variable("u", "output", "zero", copy_to=NEXT),
        )

    def sweeps(self) -> tuple[Callable[[Stage, Aux, Batch], Step], ...]:
        return (self.step,) if self.update == "batch" else (self.train, self.correct)

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        trained = yield from self.train(stage, aux, batch)
        corrected = yield from self.correct(stage, aux, batch)
        trained.tally.samples = 0  # the same ones
        corrected.tally.add(trained.tally)
        return corrected

    def train(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        """The W step."""
        yield from ()
        tally = Tally(batch.size)
        train_weights(stage, self.input(stage, aux, batch), aux.get("q"), self.alpha, batch, tally)  # (2), (3)
        return StepResult(tally)

    def correct(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        """The steps of p, q and u."""
        if self.steps == "stationary":
            return (yield from self.correct_to_stationarity(stage, aux, batch))
        s, new = share_of(self.scaling, batch), {}
        p, q = self.input(stage, aux, batch), aux.get("q")
        if not stage.first:
            g, f = slope(stage, p, q, self.alpha, batch)
            d = s * g + aux["prev_u"] + self.rho * (p - aux["prev_q"])
            search = self.backtracking and not stage.last
            tau = tau_along(stage, p, f, d, self.tau_2, self.rho, s * self.alpha) if search else self.tau_2
            p = new["p"] = p - d / tau  # (4)
            yield Send(PREV, "p", p)
        if not stage.last:
            f = forward_again(stage, p)
            p_next = yield stage.receive(NEXT, "p", batch.size, wide=True)
            new["q"] = (s * self.alpha * f + self.rho * p_next + aux["u"]) / (s * self.alpha + self.rho)  # (5)
            new["u"] = aux["u"] + self.rho * (p_next - new["q"])  # (6)
        return StepResult(Tally(batch.size), new)

    def correct_to_stationarity(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        """u and q where the Lagrangian is stationary at p = q, for the values that p has now."""
        s, new = share_of(self.scaling, batch), {}
        p = self.input(stage, aux, batch)
        if stage.first:
            f = forward_again(stage, p)
        else:
            g, f = slope(stage, p, aux.get("q"), self.alpha, batch)
            yield Send(PREV, "g", g)
        if not stage.last:
            yield Send(NEXT, "f", f)
            new["u"] = -s * (yield stage.receive(NEXT, "g", batch.size, wide=True))
            new["q"] = f + new["u"] / (s * self.alpha)  # (5')
        if not stage.first:
            new["p"] = yield stage.receive(PREV, "f", batch.size, wide=True)
        return StepResult(Tally(batch.size), new)

    def input(self, stage: Stage, aux: Aux, batch: Batch) -> torch.Tensor:
        return batch.x if stage.first else aux["p"]

    def target(self, stage: Stage, aux: Aux) -> torch.Tensor:
        return aux["q"]
