"""What the splitting does to the loss, and what Theorem 1 of TSSM allows it to do.

Remark.  Let stage l of the split network start from p_l, the variable at its input (the image for l = 0), and let
r_l = p_{l+1} − f_l(p_l) be what is missing at the boundary behind it.  Per sample, with H_l the Lipschitz constant of
f_l and H_{K-1} that of p ↦ R(f_{K-1}(p); y),

    | R(f_{K-1}(… f_0(p_0) …); y) − R(f_{K-1}(p_{K-1}); y) |  ≤  H_{K-1} Σ_{l=0}^{K-2} ‖r_l‖ Π_{j=l+1}^{K-2} H_j ,

since the distance e_l of the exact activation behind stage l from p_{l+1} obeys e_l ≤ H_l e_{l-1} + ‖r_l‖, e_{-1} = 0
(Wang et al., "Tunable Subnetwork Splitting for Model-parallelism of Neural Network Training", 2020, Theorem 1 and its
proof, eq. (9)).  Three things to know when reading the two sides:

  * The proof puts q_l = p_{l+1}.  Where a method keeps both (gsADMM), the loss is split at p, and so is r here: the
    bound holds for any values at the stages' inputs, whatever they were meant to satisfy.
  * f_l is a function of one sample in evaluation mode only, so both sides are those of the network with running
    BatchNorm statistics.
  * The right-hand side takes estimated constants (terms/lipschitz.py), each a product over the layers of a stage: it
    grows exponentially with their number and is no prediction.  What can be read is the gap, ‖r_l‖, and that more
    stages add terms, the trade-off that the paper draws from the theorem.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from hpcsplit.engine.epochs import receive_copies, send_copies
from hpcsplit.engine.job import Job
from hpcsplit.methods.contract import Compared, TrainingMethod
from hpcsplit.run.records import TheoremRecord
from hpcsplit.stage.stage import Stage
from hpcsplit.terms.lipschitz import NoEstimate, lipschitz
from hpcsplit.wire.port import NEXT, PREV, Send, Share, Verb


class _Part(NamedTuple):
    """One stage's share: ‖r‖ of each sample at its input, its constant or why it has none, and on the last stage each
    sample's gap."""

    residual: Sequence[float] = ()
    constant: float | None = None
    missing: str | None = None
    gap: Sequence[float] = ()


def theorem(job: Job, parallel_epoch: int) -> Generator[Verb, Any, TheoremRecord | None]:
    """Both sides on the mini-batch of the probe; None for one stage, for a method without variables and
    for a task whose loss has no Lipschitz constant.

    The variables must have been started.  Weights, statistics, gradients, rows and modes stay as they were, and no
    random number is drawn.
    """
    stage, method = job.stage, job.method.at(parallel_epoch)
    if stage.count == 1 or not job.has_variables or stage.task.lipschitz is None:
        return None
    job.where = "the two sides of Theorem 1"
    modes = [(module, module.training) for module in stage.blocks.modules()]
    stage.blocks.eval()
    part = yield from _own_part(job, method)
    for module, training in modes:
        module.training = training
    return _put_together([_Part(*values) for values in (yield Share(part))])


def _own_part(job: Job, method: TrainingMethod) -> Generator[Verb, Any, _Part]:
    """All stages start from their own input at once; the exact pass goes through them while constants are estimated."""
    stage, ids = job.stage, job.measured()[0]
    batch = job.batch(ids)
    rows = {name: t.to(stage.device) for name, t in (job.store.peek(ids) if job.store else {}).items()}
    yield from send_copies(job, rows, 0)
    copies = yield from receive_copies(job, batch.size, 0)

    assert isinstance(method, Compared)  # it keeps variables
    p = batch.x if stage.first else method.local_input(stage, rows | copies)
    f = exact = stage.infer(p)
    if not stage.last:
        yield Send(NEXT, "split", f)
    if stage.first:
        yield Send(NEXT, "exact", exact)
        return _Part()
    f_prev = yield stage.receive(PREV, "split", batch.size)
    residual = (p.double() - f_prev.double()).flatten(1).norm(dim=1).tolist()
    constant, missing = _constant(stage)
    exact = stage.infer((yield stage.receive(PREV, "exact", batch.size)))
    if not stage.last:
        yield Send(NEXT, "exact", exact)
        return _Part(residual, constant, missing)
    gap = stage.loss(exact.double(), batch.y) - stage.loss(f.double(), batch.y)
    return _Part(residual, constant, missing, gap.abs().tolist())


def _constant(stage: Stage) -> tuple[float | None, str | None]:
    """H of f_k, on the last stage of R ∘ f_k; or why there is none."""
    try:
        own = lipschitz(stage.blocks, stage.in_shape)
    except NoEstimate as what:
        return None, f"stage {stage.index}: no estimate: {what}"
    return (own * (stage.task.lipschitz or 1.0) if stage.last else own), None


def _put_together(parts: Sequence[_Part]) -> TheoremRecord:
    gaps, (residuals, constants, reasons, _) = parts[-1].gap, zip(*parts[1:], strict=True)
    result = TheoremRecord(
        gap=_mean(gaps),
        bound=None,
        worst=None,
        residuals=list(map(_mean, residuals)),
        lipschitz=list(constants),
        missing=list(filter(None, reasons)),
    )
    if not result["missing"]:
        bounds = right_side(residuals, constants)
        ratios = (gap / bound for gap, bound in zip(gaps, bounds, strict=True) if bound)
        result |= {"bound": _mean(bounds), "worst": max(ratios, default=0.0)}
    return result


def right_side(residuals: Sequence[Sequence[float]], constants: Sequence[float]) -> list[float]:
    """The bound of each sample by the recursion of eq. (9), from ‖r_l‖ for l = 0 … K-2 and H_1 … H_{K-1}."""
    bounds = [0.0] * len(residuals[0])
    for at_boundary, constant in zip(residuals, constants, strict=True):
        bounds = [constant * (before + r) for before, r in zip(bounds, at_boundary, strict=True)]
    return bounds


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
