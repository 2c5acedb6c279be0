"""Both sides of TSSM's Theorem 1 against the network in one piece, in float64 by torch alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.engine.theorem import right_side, theorem
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.wire import lockstep
from tests.engine.conftest import Make
from tests.engine.small import one_epoch, store_of

MLP = {"model__name": "mlp", "model__depth": 5, "model__width": 24}
RESNET = {"model__name": "resnet8"}
INPUT = {"penalty": "lam", "al": "lam", "gsadmm": "p", "gsam": "p"}


def everyone(jobs: Sequence[Job], program: Any, *args: Any) -> list[Any]:
    return lockstep.run([program(job, *args) for job in jobs])


def both_sides(jobs: Sequence[Job]) -> dict[str, Any]:
    """What every rank found; the ranks agree."""
    found = everyone(jobs, theorem, 0)
    assert all(one == found[0] for one in found)
    assert found[0] is not None
    return dict(found[0])


def store_rows(job: Job, rows: dict[str, Tensor]) -> None:
    """Put the rows of all samples into the store."""
    store, order = store_of(job), job.in_order(job.train_size)
    store.start(order, read=False)
    for step, ids in enumerate(order):
        store.write(step, {name: t[torch.from_numpy(ids)] for name, t in rows.items()})
    store.finish(0)


def randomise(jobs: Sequence[Job], spread: float) -> None:
    """Move every stored row of every variable by normal noise of this size."""
    random = torch.Generator().manual_seed(11)
    for job in (job for job in jobs if job.store):
        rows = store_of(job).peek(torch.arange(job.train_size).numpy())
        store_rows(job, {name: t + spread * torch.randn(t.shape, generator=random) for name, t in rows.items()})


def started(make: Make, stages: int, spread: float = 0.3, **changes: Any) -> list[Job]:
    """Stages after one exact epoch, with variables around the activations."""
    jobs = make(stages, store__kind="memory", **changes)
    everyone(jobs, one_epoch, Train(0, "serial", 0))
    everyone(jobs, refresh, Refresh(1))
    if spread:
        randomise(jobs, spread)
    return jobs


def stored_input(job: Job, ids: Any, name: str, factor: int) -> Tensor:
    rows = store_of(job).peek(ids)[name].double()
    if factor == 2:
        rows = rows.repeat_interleave(2, 2).repeat_interleave(2, 3)
        rows = rows[:, :, : job.stage.in_shape[1], : job.stage.in_shape[2]]
    return rows


def reference(jobs: Sequence[Job], name: str, factor: int = 1) -> tuple[Tensor, list[Tensor]]:
    """|R_serial − R_split| and ‖r_l‖ of each sample of the first mini-batch."""
    ids = jobs[0].epoch_batches(0)[0]
    nets = [copy.deepcopy(nn.Sequential(*job.stage.blocks)).double().eval() for job in jobs]
    images, labels = jobs[0].train.images(ids).double(), jobs[-1].train.labels(ids)
    p = [images, *(stored_input(job, ids, name, factor) for job in jobs[1:])]
    with torch.no_grad():
        f = [net(x) for net, x in zip(nets, p, strict=True)]
        serial = F.cross_entropy(nn.Sequential(*nets)(images), labels, reduction="none")
        split = F.cross_entropy(f[-1], labels, reduction="none")
    r = [(p[k + 1] - f[k]).flatten(1).norm(dim=1) for k in range(len(p) - 1)]
    return (serial - split).abs(), r


def sum_of_products(r: Sequence[Tensor], constants: Sequence[float | None]) -> Tensor:
    """The right-hand side as it is printed; h[j - 1] is H_j."""
    h = [constant for constant in constants if constant is not None]
    assert len(h) == len(constants)
    count = len(h) + 1
    total = torch.zeros_like(r[0])
    for l in range(count - 1):  # noqa: E741  as in the paper
        product = 1.0
        for j in range(l + 1, count - 1):
            product *= h[j - 1]
        total += r[l] * product
    return h[count - 2] * total


# ------------------------------------------------------------------------------------------------ the two sides


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize(("method", "factor"), [("penalty", 1), ("penalty", 2), ("al", 1), ("gsadmm", 1), ("gsam", 1)])
def test_both_sides_are_those_of_the_network_in_one_piece(make: Make, method: str, factor: int, stages: int) -> None:
    changes: dict[str, Any] = {"method__name": method}
    if method in ("penalty", "al"):
        changes["method__downsample"] = factor
    jobs = started(make, stages, **changes)
    found = both_sides(jobs)
    gap, r = reference(jobs, INPUT[method], factor)
    assert found["gap"] == pytest.approx(float(gap.mean()), rel=1e-4)
    assert found["residuals"] == pytest.approx([float(norms.mean()) for norms in r], rel=1e-4)
    assert found["missing"] == []
    assert len(found["lipschitz"]) == stages - 1
    bound = sum_of_products(r, found["lipschitz"])
    assert found["bound"] == pytest.approx(float(bound.mean()), rel=1e-4)
    assert found["worst"] == pytest.approx(float((gap / bound).max()), rel=1e-3)
    assert gap.mean() > 1e-3


def test_the_recursion_is_the_printed_sum() -> None:
    r = [torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([2.0, 5.0], dtype=torch.float64)]
    found = right_side([t.tolist() for t in r], [3.0, 7.0])
    assert found == [7 * (2 + 3 * 1), 7 * 5]
    assert found == sum_of_products(r, [3.0, 7.0]).tolist()


@pytest.mark.parametrize("spread", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("network", [MLP, RESNET], ids=["mlp", "resnet"])
def test_no_sample_is_above_its_bound(make: Make, network: dict[str, Any], stages: int, spread: float) -> None:
    jobs = started(make, stages, spread, method__name="gsam", data__limit_train=40, **network)
    found = both_sides(jobs)
    gap, r = reference(jobs, "p")
    assert torch.all(gap <= sum_of_products(r, found["lipschitz"]))
    assert found["worst"] is not None
    assert 0 < found["worst"] <= 1


def test_the_bound_is_reached_where_it_can_be(make: Make) -> None:
    """Logits (t, −t, 0 …) under label 1 lose √2 ‖change of the logits‖ for large t, and r is along the weight's only
    direction."""
    jobs = make(2, store__kind="memory", method__name="gsam", split__cuts=[5], **MLP)
    head: Any = jobs[1].stage.blocks[0]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.weight[:2, 0] = torch.tensor([1.0, -1.0])
    jobs[1].train = AllOne()
    everyone(jobs, refresh, Refresh(1))
    rows = store_of(jobs[1]).peek(torch.arange(100).numpy())["p"]
    rows[:, 0] += 1e4
    store_rows(jobs[1], {"p": rows})
    found = both_sides(jobs)
    assert found["lipschitz"] == pytest.approx([2.0])  # √2 · √2
    assert found["residuals"] == pytest.approx([1e4], rel=1e-3)
    assert found["worst"] == pytest.approx(1.0, abs=1e-3)


class AllOne:
    """The label of every sample is 1."""

    def images(self, ids: Any, *, epoch: int = 0, augment: bool = False) -> Tensor:
        raise AssertionError("the last stage sees no images")

    def labels(self, ids: Any, **view: Any) -> Tensor:
        return torch.ones(len(ids), dtype=torch.int64)


# ------------------------------------------------------------------------------------------------ at rest, and no trace


@pytest.mark.parametrize("method", ["penalty", "al", "gsadmm", "gsam"])
@pytest.mark.parametrize("stages", [2, 4])
def test_after_a_refresh_both_sides_are_zero(make: Make, method: str, stages: int) -> None:
    """Up to what a convolution rounds differently in another mini-batch."""
    whole: dict[str, Any] = {"method__downsample": 1} if method == "al" else {}
    jobs = started(make, stages, 0.0, method__name=method, **whole)
    found = both_sides(jobs)
    randomise(jobs, 1.0)
    scale = both_sides(jobs)["bound"]
    assert found["bound"] is not None
    assert scale is not None
    assert found["gap"] < 1e-5
    assert max(found["residuals"]) < 1e-4
    assert found["bound"] < 1e-4 * scale


def test_it_leaves_no_trace(make: Make) -> None:
    jobs = started(make, 3, method__name="gsadmm")
    everyone(jobs, one_epoch, Train(1, "parallel", 0))
    next(jobs[1].stage.blocks.children()).eval()  # the rest is in training mode
    everything = torch.arange(100).numpy()

    def state() -> list[Any]:
        values: list[Any] = [torch.get_rng_state()]
        for job in jobs:
            values += [t.clone() for t in job.stage.state().values()]
            values += [None if p.grad is None else p.grad.clone() for p in job.stage.parameters]
            values += [module.training for module in job.stage.blocks.modules()]
            values += list(job.store.peek(everything).values()) if job.store else []
        return values

    before = state()
    assert {True, False} <= {value for value in before if isinstance(value, bool)}
    both_sides(jobs)
    for a, b in zip(before, state(), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a is b


def test_the_weights_of_a_run_do_not_know_that_it_was_asked(make: Make) -> None:
    def weights(place: str, ask: bool) -> list[Tensor]:
        jobs = make(2, None, place, store__kind="memory", model__name="tests.engine.tinynet:noisy")
        everyone(jobs, refresh, Refresh(0))
        for epoch in range(2):
            everyone(jobs, one_epoch, Train(epoch, "parallel", epoch))
            if ask:
                both_sides(jobs)
        return [t.clone() for job in jobs for t in job.stage.state().values()]

    assert all(torch.equal(a, b) for a, b in zip(weights("a", True), weights("b", False), strict=True))


# ------------------------------------------------------------------------------------------------ nothing to say


def test_one_stage_and_exact_training_have_no_boundary(make: Make) -> None:
    assert everyone(make(1, store__kind="memory"), theorem, 0) == [None]
    assert everyone(make(2, None, "b", method__name="backprop"), theorem, 0) == [None, None]


def test_a_layer_without_a_rule_is_named_and_the_left_side_stays(make: Make) -> None:
    """The random layer is in the last of three stages."""
    jobs = started(make, 3, model__name="tests.engine.tinynet:noisy")
    found = both_sides(jobs)
    gap, r = reference(jobs, "lam")
    assert found["gap"] == pytest.approx(float(gap.mean()), rel=1e-4)
    assert found["residuals"] == pytest.approx([float(norms.mean()) for norms in r], rel=1e-4)
    assert (found["bound"], found["worst"]) == (None, None)
    assert found["lipschitz"][0] is not None
    assert found["lipschitz"][1] is None
    assert found["missing"] == ["stage 2: no estimate: dropout in Noisy"]
