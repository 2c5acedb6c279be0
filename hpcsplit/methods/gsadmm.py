"""gsADMM: gradient splitting by the alternating direction method of multipliers (TSSM, Algorithm 1).

Wang et al., "Tunable Subnetwork Splitting for Model-parallelism of Neural Network Training", 2020.  Per sample, for
stages l = 0 … K-1 with input p_l, free output q_l and multiplier u_l of p_{l+1} = q_l,

    L = s R(x^{K-1}; y) + Σ_{l<K-1} [ s α/2 ‖q_l − f_l(p_l)‖² + ⟨u_l, p_{l+1} − q_l⟩ + ρ/2 ‖p_{l+1} − q_l‖² ].

One step on a mini-batch, all stages at once; three forward passes:

    W_l   one optimizer step on the batch mean of α/2 ‖q_l − f_l(p_l)‖², the last stage of R                 (2), (3)
    p_l ← p_l − (1/τ₂) ( s ∂/∂p_l [own term] + u_{l-1} + ρ (p_l − q_{l-1}) )         with the new W           (4)
    q_l ← ( s α f_l(p_l) + ρ p_{l+1} + u_l ) / ( s α + ρ )                 with the new W, p_l and p_{l+1}    (5)
    u_l ← u_l + ρ (p_{l+1} − q_l)                                              with the new p_{l+1} and q_l   (6)

s = 1/M is the paper's scaling; tssm.py says why the default is 1.  BatchNorm statistics follow the pass of the W step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
from hpcsplit.methods.tssm import forward_again, share_of, slope, train_weights
from hpcsplit.split.stage import Place, Stage
from hpcsplit.wire.port import NEXT, PREV, Recv, Send


@method("gsadmm")
@dataclass(frozen=True)
class GsAdmm(TrainingMethod):
    """Gradient-splitting ADMM with p, q and u at every boundary (TSSM)."""

    alpha: float = option(0.1, "coefficient α of the distance of q from the stage's output", above=0.0)
    rho: float = option(0.1, "coefficient ρ of p = q", above=0.0)
    tau_2: float = option(0.2, "the step of p is 1/τ₂", above=0.0)
    scaling: str = option("sample", "own terms of one sample, or 1/M of them as printed", choices=("sample", "paper"))

    def variables(self, place: Place) -> tuple[Variable, ...]:
        return (
            Variable("p", "input", "forward"),
            Variable("q", "output", "forward", copy_to=NEXT),
            Variable("u", "output", "zero", copy_to=NEXT),
        )

    def messages(self) -> tuple[Message, ...]:
        return (Message(PREV),)

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        s, tally, new = share_of(self.scaling, batch), Tally(batch.size), {}
        p, q = (batch.x if stage.first else aux["p"]), aux.get("q")
        train_weights(stage, p, q, self.alpha, batch, tally)  # (2), (3)
        if not stage.first:
            g, _ = slope(stage, p, q, self.alpha, batch)
            p = new["p"] = p - (s * g + aux["prev_u"] + self.rho * (p - aux["prev_q"])) / self.tau_2  # (4)
            yield Send(PREV, "p", p)
        if not stage.last:
            f = forward_again(stage, p)
            p_next = yield Recv(NEXT, "p", tuple(f.shape), stage.wide)
            new["q"] = (s * self.alpha * f + self.rho * p_next + aux["u"]) / (s * self.alpha + self.rho)  # (5)
            new["u"] = aux["u"] + self.rho * (p_next - new["q"])  # (6)
        return StepResult(tally, new)

    def local_input(self, stage: Stage, aux: Aux) -> torch.Tensor:
        return aux["p"]

    def target(self, stage: Stage, aux: Aux) -> torch.Tensor:
        return aux["q"]

    def adjoint(self, stage: Stage, aux: Aux, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pull = self.alpha * (x - aux["q"])
        return pull, pull
