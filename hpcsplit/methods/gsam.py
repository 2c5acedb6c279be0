"""gsAM: gradient splitting by alternating minimisation, one variable at each boundary (TSSM, Algorithm 2).

Wang et al., "Tunable Subnetwork Splitting for Model-parallelism of Neural Network Training", 2020.  Per sample, with
the image as p_0,

    F = s R(f_{K-1}(p_{K-1}); y) + Σ_{l<K-1} s α/2 ‖p_{l+1} − f_l(p_l)‖².

One step on a mini-batch:

    W_l   one optimizer step on the batch mean of α/2 ‖p_{l+1} − f_l(p_l)‖², the last stage of R; all stages at once
    p_l ← p_l − (s/τ₂) ( α (p_l − f_{l-1}(p_{l-1})) + ∂/∂p_l [own term] )        with the new W           (7), (8)

As printed, l goes from 1 to K-1 and each p_l takes its predecessor's new value: a Gauss-Seidel sweep, in which stage l
waits for stage l - 1.  `sweep = "jacobi"` takes the old value, so that all stages move at once.  s = 1/M is the paper's
scaling; tssm.py says why the default is 1.  `backtracking` is that of gsadmm.py; here the curvature of a middle stage's
terms is s α (1 + ‖∂f_l/∂p_l‖²).  BatchNorm statistics follow the pass of the W step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpcsplit.config.option import option
from hpcsplit.methods.contract import Aux, Batch, Step, StepResult, Tally, Variable, method
from hpcsplit.methods.tssm import Splitting, forward_again, share_of, slope, tau_along, train_weights
from hpcsplit.stage.stage import Place, Stage
from hpcsplit.wire.port import NEXT, PREV, Send


@method("gsam")
@dataclass(frozen=True)
class GsAm(Splitting):
    """Gradient-splitting alternating minimisation with one variable p at every boundary (TSSM)."""

    alpha: float = option(0.1, "coefficient α of the distance of p from the output before it", above=0.0)
    tau_2: float = option(0.1, "the step of p is 1/τ₂; with τ₂ = α p forgets its old value", above=0.0)
    sweep: str = option("gauss-seidel", "p in order of the stages, or all at once", choices=("gauss-seidel", "jacobi"))
    backtracking: bool = option(True, "raise τ₂ of a middle stage to the curvature along each sample's step")
    scaling: str = option("sample", "own terms of one sample, or 1/M of them as printed", choices=("sample", "paper"))

    def variables(self, place: Place) -> tuple[Variable, ...]:
        return (Variable("p", "input", "forward", copy_to=PREV),)

    def step(self, stage: Stage, aux: Aux, batch: Batch) -> Step:
        s, tally, new = share_of(self.scaling, batch), Tally(batch.size), {}
        p, p_next = (batch.x if stage.first else aux["p"]), aux.get("next_p")
        train_weights(stage, p, p_next, self.alpha, batch, tally)
        if stage.first:
            f = forward_again(stage, p)
        else:
            g, f = slope(stage, p, p_next, self.alpha, batch)
        if self.sweep == "jacobi" and not stage.last:
            yield Send(NEXT, "f", f)
        if not stage.first:
            f_prev = yield stage.receive(PREV, "f", batch.size, wide=True)
            d = s * (self.alpha * (p - f_prev) + g)
            search, pull = self.backtracking and not stage.last, s * self.alpha
            tau = tau_along(stage, p, f, d, self.tau_2, pull, pull) if search else self.tau_2
            new["p"] = p - d / tau  # (7), (8)
        if self.sweep == "gauss-seidel" and not stage.last:
            yield Send(NEXT, "f", f if stage.first else forward_again(stage, new["p"]))
        return StepResult(tally, new)

    def target(self, stage: Stage, aux: Aux) -> torch.Tensor:
        return aux["next_p"]
