"""gsADMM and gsAM against a direct transcription of TSSM's Lagrangian, by autograd in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.methods.gsadmm import GsAdmm
from hpcsplit.methods.gsam import GsAm
from hpcsplit.wire import lockstep
from tests.methods.tiny import aux_of, batch_for, batch_of, conv_parts, make_stages, random_rows

Parts = list[nn.Sequential]
SHAPE = (1, 6, 6)
LR = 0.03
TOTAL = 50  # training samples


def stepped(
    method: GsAdmm | GsAm, count: int, *, frozen: bool = False, change: Callable[[Parts], Parts] = lambda parts: parts
) -> tuple[Parts, Parts, dict[str, list[Tensor]], list[dict[str, Tensor]], Tensor, Tensor]:
    """Stages of `count` parts before and after one step, the rows before, the rows after, images and labels."""
    parts = change(conv_parts(count, SHAPE))
    before = copy.deepcopy(parts)
    images, labels = batch_of(SHAPE)
    stages = make_stages(parts, images, lr=LR, momentum=0.0, frozen=frozen)
    rows = random_rows(method, stages, len(images))
    batches = [dataclasses.replace(batch_for(s, images, labels), total=TOTAL) for s in stages]
    programs = [method.step(s, aux_of(s, rows), b) for s, b in zip(stages, batches, strict=True)]
    new = [result.aux for result in lockstep.run(programs)]
    return before, [nn.Sequential(*s.blocks) for s in stages], rows, new, images, labels


def own_terms(
    parts: Parts, p: Sequence[Tensor], target: Sequence[Tensor], labels: Tensor, alpha: float
) -> list[Tensor]:
    """R of the last part and α/2 ‖target − f(p)‖² of the others, for each sample."""
    ends = [part(x) for part, x in zip(parts, p, strict=True)]
    inner = [alpha / 2 * (t - x).flatten(1).square().sum(1) for t, x in zip(target, ends[:-1], strict=True)]
    return [*inner, F.cross_entropy(ends[-1], labels, reduction="none")]


def assert_descended(before: Parts, after: Parts, terms: Sequence[Tensor]) -> None:
    """One plain gradient step on the batch mean of each part's own term."""
    for old, now, term in zip(before, after, terms, strict=True):
        weights = list(old.parameters())
        slopes = torch.autograd.grad(term.mean(), weights, retain_graph=True)
        expected = [w - LR * slope for w, slope in zip(weights, slopes, strict=True)]
        torch.testing.assert_close([*now.parameters()], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scaling", ["sample", "paper"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_gsadmm_is_the_transcription_of_equations_2_to_6(count: int, scaling: str) -> None:
    m = GsAdmm(alpha=0.7, rho=0.4, tau_2=3.0, scaling=scaling)
    s = 1.0 if scaling == "sample" else 1.0 / TOTAL
    before, after, rows, new, images, labels = stepped(m, count)
    p, q, u = [images, *rows["p"][1:]], rows["q"][:-1], rows["u"][:-1]
    assert_descended(before, after, own_terms(before, p, q, labels, m.alpha))

    free = [x.clone().requires_grad_() for x in p]
    zero = torch.zeros((), dtype=torch.float64)
    lagrangian = s * sum((t.sum() for t in own_terms(after, free, q, labels, m.alpha)), start=zero)
    for p_next, q_l, u_l in zip(free[1:], q, u, strict=True):
        lagrangian = lagrangian + (u_l * (p_next - q_l)).sum() + m.rho / 2 * (p_next - q_l).square().sum()
    slopes = torch.autograd.grad(lagrangian, free[1:])
    p_new = [images, *(x - g / m.tau_2 for x, g in zip(p[1:], slopes, strict=True))]
    for k in range(1, count):
        torch.testing.assert_close(new[k]["p"], p_new[k], rtol=1e-10, atol=1e-12)

    for k in range(count - 1):  # q minimises L exactly: its slope there is zero; u follows (6)
        q_new = new[k]["q"].clone().requires_grad_()
        gap = p_new[k + 1] - q_new
        part = s * m.alpha / 2 * (q_new - after[k](p_new[k])).square().sum() + (u[k] * gap).sum()
        (slope,) = torch.autograd.grad(part + m.rho / 2 * gap.square().sum(), q_new)
        assert slope.abs().max() < 1e-10
        torch.testing.assert_close(new[k]["u"], u[k] + m.rho * (p_new[k + 1] - new[k]["q"]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scaling", ["sample", "paper"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_gsadmm_at_stationarity_is_where_the_lagrangians_slopes_are_zero(count: int, scaling: str) -> None:
    """In p and in q at p = q, for the old p and the new weights; the new p is what the stage before makes."""
    m = GsAdmm(alpha=0.7, rho=0.4, steps="stationary", scaling=scaling)
    s = 1.0 if scaling == "sample" else 1.0 / TOTAL
    before, after, rows, new, images, labels = stepped(m, count)
    p, q = [images, *rows["p"][1:]], rows["q"][:-1]
    assert_descended(before, after, own_terms(before, p, q, labels, m.alpha))
    free = [x.clone().requires_grad_() for x in p]
    own = own_terms(after, free, q, labels, m.alpha)
    for k in range(1, count):
        (slope,) = torch.autograd.grad(s * own[k].sum(), free[k], retain_graph=True)
        torch.testing.assert_close(new[k - 1]["u"], -slope, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(new[k]["p"], after[k - 1](p[k - 1]), rtol=1e-10, atol=1e-12)
        q_new = new[k - 1]["q"].detach().requires_grad_()
        part = s * m.alpha / 2 * (q_new - after[k - 1](p[k - 1])).square().sum() - (new[k - 1]["u"] * q_new).sum()
        (slope,) = torch.autograd.grad(part, q_new)
        assert slope.abs().max() < 1e-10


def test_at_stationarity_three_visits_teach_every_stage_the_exact_gradient() -> None:
    """With weights that stay, what each of four stages is trained with is then the whole network's gradient."""
    m, parts = GsAdmm(alpha=0.7, steps="stationary"), conv_parts(4, SHAPE)
    images, labels = batch_of(SHAPE)
    stages = make_stages(parts, images, lr=0.0, momentum=0.0)
    rows = random_rows(m, stages, len(images))
    for _ in range(6):  # three for the values to come forward, three for the slopes to go back
        batches = [batch_for(s, images, labels) for s in stages]
        done = lockstep.run([m.step(s, aux_of(s, rows), b) for s, b in zip(stages, batches, strict=True)])
        rows = {name: [r.aux.get(name, old) for r, old in zip(done, rows[name], strict=True)] for name in rows}
    x = images
    for stage in stages[:-1]:
        x = stage.infer(x).requires_grad_()
        y = x
        for later in parts[stage.index + 1 :]:
            y = later(y)
        (exact,) = torch.autograd.grad(F.cross_entropy(y, labels, reduction="sum"), x)
        used, _ = m.adjoint(stage, aux_of(stage, rows), x.detach())
        torch.testing.assert_close(used, exact, rtol=1e-9, atol=1e-12)


def with_statistics(parts: Parts) -> Parts:
    """BatchNorm behind the first layer of every part."""
    for part in parts:
        part.insert(1, nn.BatchNorm2d(2).double())
    return parts


@pytest.mark.parametrize("backtracking", [True, False])
@pytest.mark.parametrize(
    "m",
    [GsAdmm(alpha=0.7, rho=0.4), GsAm(alpha=0.7), GsAm(alpha=0.7, sweep="jacobi")],
    ids=["gsadmm", "gsam", "gsam, jacobi"],
)
def test_batchnorm_statistics_move_once_a_step_with_the_pass_of_the_weights(
    m: GsAdmm | GsAm, backtracking: bool
) -> None:
    m = dataclasses.replace(m, backtracking=backtracking)
    before, after, rows, _, images, _ = stepped(m, 4, change=with_statistics)
    for old, now, p in zip(before, after, [images, *rows["p"][1:]], strict=True):
        seen = old[0](p)
        assert now[1].num_batches_tracked == 1
        torch.testing.assert_close(now[1].running_mean, 0.1 * seen.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(now[1].running_var, 0.9 + 0.1 * seen.transpose(0, 1).flatten(1).var(1))


@pytest.mark.parametrize("sweep", ["gauss-seidel", "jacobi"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_gsam_is_the_transcription_of_equations_7_and_8(count: int, sweep: str) -> None:
    m = GsAm(alpha=0.7, tau_2=3.0, sweep=sweep)
    before, after, rows, new, images, labels = stepped(m, count)
    p = [images, *rows["p"][1:]]
    assert_descended(before, after, own_terms(before, p, p[1:], labels, m.alpha))

    now = list(p)
    for k in range(1, count):
        previous = now if sweep == "gauss-seidel" else p
        x = p[k].clone().requires_grad_()
        own = own_terms(after, [*p[:k], x, *p[k + 1 :]], p[1:], labels, m.alpha)[k].sum()
        mismatch = m.alpha / 2 * (x - after[k - 1](previous[k - 1]).detach()).square().sum()
        (slope,) = torch.autograd.grad(own + mismatch, x)
        now[k] = p[k] - slope / m.tau_2
        torch.testing.assert_close(new[k]["p"], now[k], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("m", "stiffness"), [(GsAdmm(alpha=0.7, rho=0.4, tau_2=0.5), 0.4), (GsAm(alpha=0.7, tau_2=0.5), 0.7)]
)
def test_backtracking_takes_the_curvature_along_the_step_in_a_middle_stage(m: GsAdmm | GsAm, stiffness: float) -> None:
    """The curvature is that of autograd's Hessian; where the stage stretches the fixed τ₂ is less than half of it, and
    its step goes up again."""

    def stretched(parts: list[nn.Sequential]) -> list[nn.Sequential]:
        stretch = nn.Conv2d(2, 2, 1, bias=False).double()
        stretch.weight.data = torch.tensor([[6.0, 2.0], [0.0, 0.1]], dtype=torch.float64).view(2, 2, 1, 1)
        return [parts[0], nn.Sequential(stretch), parts[-1]]

    found = {}
    for backtracking in (True, False):
        method = dataclasses.replace(m, backtracking=backtracking)
        _, after, rows, new, *_ = stepped(method, 3, change=stretched)
        found[backtracking] = new[1]["p"]
    p, target = rows["p"][1], rows["q"][1] if "q" in rows else rows["p"][2]
    curvatures = []
    for k, sample in enumerate(p):
        step = found[False][k] - sample  # -d/τ₂ with the fixed τ₂

        def terms(x: Tensor, k: int = k) -> Tensor:
            own: Tensor = m.alpha / 2 * (target[k] - after[1](x[None])[0]).square().sum()
            return own + stiffness / 2 * x.square().sum()

        hessian = torch.autograd.functional.hessian(terms, sample).reshape(sample.numel(), -1)
        curvatures.append(float(step.flatten() @ hessian @ step.flatten() / step.square().sum()))
        expected = sample + step * m.tau_2 / max(m.tau_2, curvatures[-1])
        torch.testing.assert_close(found[True][k], expected, rtol=1e-9, atol=1e-12)
    assert max(curvatures) > 2 * m.tau_2


@pytest.mark.parametrize("method", [GsAdmm(), GsAm()])
def test_frozen_leaves_all_but_the_last_stage(method: GsAdmm | GsAm) -> None:
    before, after, *_ = stepped(method, 3, frozen=True)
    moved = [
        any(not torch.equal(a, b) for a, b in zip(old.parameters(), now.parameters(), strict=True))
        for old, now in zip(before, after, strict=True)
    ]
    assert moved == [False, False, True]


def test_with_the_papers_scaling_the_label_hardly_moves_p() -> None:
    """One step from p = q = f, u = 0: all that moves p is the slope of R, 1/M of it with the paper's scaling."""
    moves = {}
    for scaling in ("sample", "paper"):
        m = GsAdmm(scaling=scaling)
        images, labels = batch_of(SHAPE)
        stages = make_stages(conv_parts(2, SHAPE), images, lr=0.0, momentum=0.0)
        x = stages[0].infer(images)
        starts = ({"q": x, "u": torch.zeros_like(x)}, {"p": x, "prev_q": x, "prev_u": torch.zeros_like(x)})
        batches = [dataclasses.replace(batch_for(s, images, labels), total=TOTAL) for s in stages]
        new = lockstep.run([m.step(s, a, b) for s, a, b in zip(stages, starts, batches, strict=True)])
        moves[scaling] = (new[1].aux["p"] - x).norm()
    assert moves["sample"] / moves["paper"] == pytest.approx(TOTAL, rel=1e-9)


def test_the_adjoint_is_the_slope_of_the_own_term() -> None:
    for m, name in ((GsAdmm(alpha=0.3), "q"), (GsAm(alpha=0.3), "next_p")):
        stages = make_stages(conv_parts(2, SHAPE), batch_of(SHAPE)[0])
        x = torch.randn(5, *stages[0].out_shape, dtype=torch.float64, requires_grad=True)
        aux = {name: torch.randn_like(x)}
        (slope,) = torch.autograd.grad(0.15 * (aux[name] - x).square().sum(), x)
        used, penalty = m.adjoint(stages[0], aux, x)
        torch.testing.assert_close(used, slope)
        torch.testing.assert_close(penalty, slope)
