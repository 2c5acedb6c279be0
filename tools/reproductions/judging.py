"""Whether a claim holds: a 95 % t interval of its mean, and a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from tools.reproductions.declaring import Claim
from tools.reproductions.measuring import MEASURES, Results

ENOUGH = 8  # seeds from which on a difference under one percent point is claimed


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim; the interval is None with fewer than two values."""

    claim: Claim
    answer: str  # "holds" | "does not hold" | "not decided"
    mean: float
    interval: tuple[float, float] | None
    n: int
    counted: bool = False

    def sentence(self) -> str:
        name = "mean" if not self.claim.rival else "difference in %" if self.claim.relative else "difference"
        spread = "no interval" if self.interval is None else "95 % [{:.4g}, {:.4g}]".format(*self.interval)
        note = "; times counted, not measured" if self.counted else ""
        return f"{self.claim.text}: **{self.answer}** (n = {self.n}, {name} {self.mean:.4g}, {spread}{note})"


def judge(claim: Claim, results: Results) -> Verdict | None:
    """The verdict, or None where a row of the claim has no finished run."""
    rows = [results.experiment.row(key) for key in (claim.row, claim.rival) if key]
    own, *others = [results.values(row, claim.measure) for row in rows]
    values = list(own.values())
    if others:
        seeds = sorted(set(own) & set(others[0]))
        scale = {seed: 100 / others[0][seed] if claim.relative else 1.0 for seed in seeds}
        values = [scale[seed] * (own[seed] - others[0][seed]) for seed in seeds]
    if not values:
        return None
    timed = claim.measure in ("seconds", "epoch_seconds", "speedup", "limit_share", "lead_in_time")
    return Verdict(
        claim,
        answer(values, claim, points=MEASURES[claim.measure].points),
        statistics.mean(values),
        interval(values),
        len(values),
        counted=timed and any(map(results.counted, rows)),
    )


def answer(values: Sequence[float], claim: Claim, *, points: bool) -> str:
    """A claim holds where the whole interval lies between its bounds, and fails where all of it lies beyond one."""
    limits = interval(values)
    if limits is None:
        return "not decided"
    bounds = [bound for bound in (claim.above, claim.below) if bound is not None]
    close = min(abs(statistics.mean(values) - bound) for bound in bounds) < 1
    if points and close and len(bounds) == 1 and len(values) < ENOUGH:
        return "not decided"
    low, high = limits
    if (claim.above is None or low > claim.above) and (claim.below is None or high < claim.below):
        return "holds"
    if (claim.above is not None and high < claim.above) or (claim.below is not None and low > claim.below):
        return "does not hold"
    return "not decided"


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t interval of the mean."""
    n = len(values)
    if n < 2:
        return None
    mean, half = statistics.mean(values), stdtrit(n - 1, 0.975) * statistics.stdev(values) / n**0.5
    return float(mean - half), float(mean + half)
