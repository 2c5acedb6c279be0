"""How fast a run will be: DS-SPH's formulas (9) and (11), and the same with the stages as they are really cut.

With K stages, t_f, t_b, t_d the whole network's forward pass, backward pass (the optimizer's step with it) and data
loader on one device, t_ψ, t_λ, t_κ what a cut costs the stages beside it, γ_H serial epochs for one parallel one:

    t_s = t_f + t_b + t_d        t_p = (t_f + t_b) / K + t_ψ + t_λ + t_κ
    ρ_K = t_s / t_p                                      (9)
    ρ_H = (1 + γ_H) / (1/ρ_K + γ_H)                     (11)

The paper prints (t_s + t_b)/K in its t_p below (11); (9) has (t_f + t_b)/K, and so has this file.  (11) leaves exact
epochs on one device; where they are a pipeline that is ρ_E times as fast, γ_H/ρ_E stands in place of the last γ_H.

The formulas know equal stages.  The forecast of a step takes those of the cuts: a parallel step is as long as its
slowest stage, a pipelined one with M micro-batches takes Σ (f_k + b_k) + (M − 1) max (f_k + b_k), for equal stages the
bubble's (K + M − 1) of them; where weight gradients wait, what its timetable does (schedule/timetable.py).  Messages on
their way, refreshes and evaluations are in neither.

A run's own forecast scales the sum of the parts to a whole step on one device.  With several ranks it scales each stage
to what its blocks take while all compute at once, since cores of a node share memory, caches and power, and then all of
it to what a few exact steps have taken that nothing has learnt from: messages, waking up, what is around the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from hpcsplit.methods.backprop import Backprop
from hpcsplit.plan.profile import CutCost, Profile
from hpcsplit.schedule.actions import Phase
from hpcsplit.schedule.timetable import Passes, course, timetables

IN_ORDER = Backprop()


@dataclass(frozen=True)
class Forecast:
    """Seconds are those of one mini-batch."""

    ranks: int
    microbatches: int
    t_f: float
    t_b: float
    t_d: float
    t_psi: float
    t_lam: float
    t_kappa: float
    gamma: float | None  # None: no epoch is parallel
    parallel_s: float
    exact_s: float

    @property
    def t_s(self) -> float:
        return self.t_f + self.t_b + self.t_d

    @property
    def t_p(self) -> float:
        return (self.t_f + self.t_b) / self.ranks + self.t_psi + self.t_lam + self.t_kappa

    @property
    def rho_k(self) -> float:
        """Formula (9)."""
        return self.t_s / self.t_p

    @property
    def rho_h(self) -> float:
        """Formula (11)."""
        return hybrid(self.gamma, self.rho_k)

    @property
    def parallel_speed_up(self) -> float:
        """Of parallel epochs over one device, with the stages as cut."""
        return self.t_s / self.parallel_s

    @property
    def exact_speed_up(self) -> float:
        """Of pipelined exact epochs over one device."""
        return self.t_s / self.exact_s

    @property
    def hybrid_speed_up(self) -> float:
        """Of the whole schedule with pipelined exact epochs."""
        return hybrid(self.gamma, self.parallel_speed_up, self.exact_speed_up)

    @property
    def hybrid_speed_up_one_device(self) -> float:
        """Of the whole schedule with exact epochs on one device."""
        return hybrid(self.gamma, self.parallel_speed_up)

    def as_dict(self) -> dict[str, Any]:
        derived = [name for name, value in vars(Forecast).items() if isinstance(value, property)]
        return asdict(self) | {name: getattr(self, name) for name in derived}


def hybrid(gamma: float | None, parallel: float, exact: float = 1.0) -> float:
    """The speed-up of a schedule with `gamma` exact epochs for a parallel one, from those of its two kinds."""
    return exact if gamma is None else (1 + gamma) / (1 / parallel + gamma / exact)


def gamma_of(phases: Sequence[Phase]) -> float | None:
    """Serial epochs for a parallel one."""
    parallel = sum(phase == "parallel" for phase in phases)
    return (len(phases) - parallel) / parallel if parallel else None


def forecast(
    profile: Profile,
    cuts: Sequence[int],
    gamma: float | None,
    edge_bytes: Sequence[int] = (),
    exact: Backprop = IN_ORDER,
) -> Forecast:
    """The forecast for the network cut before these blocks.

    Args:
        edge_bytes: what a mini-batch's activations at each cut take as a message; an exact step sends them and as many
            bytes of gradients back.
        exact: the method of exact steps, whose micro-batches are those of the profile.
    """
    cut_costs = [profile.join(cut) for cut in cuts] or [CutCost()]
    stages, m = profile.exact_stages(cuts), profile.microbatches
    edges = [0, *(edge_bytes or [0] * len(cuts)), 0]
    passes = [
        Passes(p.forward + profile.packing_s * after / m, p.backward + profile.packing_s * before / m, p.weights)
        for (p, _), (before, after) in zip(stages, pairwise(edges), strict=True)
    ]
    if any(p.weights for p in passes):
        passes_s = course(timetables(exact.order, len(passes), m), passes, exact.waiting).length
    else:
        both = [p.forward + p.backward for p in passes]
        passes_s = sum(both) + (m - 1) * max(both)
    return Forecast(
        ranks=len(cuts) + 1,
        microbatches=m,
        t_f=profile.forward_s,
        t_b=profile.backward_s,
        t_d=profile.data_s,
        t_psi=max(join.psi_s for join in cut_costs),
        t_lam=max(join.lam_s for join in cut_costs) + max(join.packing_s for join in cut_costs),
        t_kappa=max(join.kappa_s for join in cut_costs),
        gamma=gamma,
        parallel_s=max(profile.parallel_stage_s(cuts)),
        exact_s=profile.data_s + passes_s + max(update for _, update in stages),
    )
