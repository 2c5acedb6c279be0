"""Back-propagation over stages against autograd on the whole network."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.methods.backprop import Backprop
from hpcsplit.nets.catalog import build
from hpcsplit.schedule.timetable import ORDERS, Order
from tests.methods import tiny

SHAPE = (1, 8, 8)
CUTS = [(), (4,), (1,), (1, 2), (2, 4), (1, 3, 4)]
NETS: dict[str, dict[str, Any]] = {
    "resnet8 post": {"name": "resnet8", "block": "post"},
    "resnet8 pre": {"name": "resnet8", "block": "pre"},
    "mlp": {"name": "mlp", "depth": 4, "width": 6},
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> nn.Sequential:
    """Five blocks each."""
    torch.manual_seed(3)
    options = dict(NETS[request.param])
    return build(options.pop("name"), SHAPE, 3, **options)


def cut(net: nn.Sequential, cuts: Sequence[int]) -> list[nn.Sequential]:
    edges = [0, *cuts, len(net)]
    return [net[a:b] for a, b in pairwise(edges)]


def plain_gradients(net: nn.Sequential, images: Tensor, labels: Tensor) -> list[Tensor]:
    twin = copy.deepcopy(net)
    return list(torch.autograd.grad(F.cross_entropy(twin(images), labels), list(twin.parameters())))


def staged_gradients(
    parts: Sequence[nn.Sequential], images: Tensor, labels: Tensor, microbatches: int = 1, **options: bool
) -> list[Tensor]:
    stages = tiny.make_stages(parts, images, **options)
    tiny.step(Backprop(microbatches), stages, images, labels, {})
    return [tiny.gradient_of(p) for s in stages for p in s.parameters]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cuts", CUTS)
def test_gradients_agree_with_the_whole_network(net: nn.Sequential, cuts: tuple[int, ...], channels_last: bool) -> None:
    net.double()
    images, labels = tiny.batch_of(SHAPE, size=6)
    found = staged_gradients(cut(net, cuts), images, labels, channels_last=channels_last)
    torch.testing.assert_close(found, plain_gradients(net, images, labels), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [8, 12, 7, 1])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cuts", [(), (3,), (1, 3, 4)])
def test_weights_and_statistics_are_those_of_a_plain_loop_bit_for_bit(
    net: nn.Sequential, cuts: tuple[int, ...], channels_last: bool, size: int
) -> None:
    whole = copy.deepcopy(net)
    images, labels = tiny.batch_of(SHAPE, size=size, dtype=torch.float32)
    stages = tiny.make_stages(cut(net, cuts), images, lr=0.1, momentum=0.9, channels_last=channels_last)
    for s in stages:
        s.blocks.train()

    if channels_last:
        whole.to(memory_format=torch.channels_last)
    plain_images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    whole.train()
    for _ in range(4):
        tiny.step(Backprop(), stages, images, labels, {})
        optimizer.zero_grad()
        F.cross_entropy(whole(plain_images), labels).backward()
        optimizer.step()

    found = {name: value for s in stages for name, value in s.state().items()}
    assert list(found) == list(whole.state_dict())
    torch.testing.assert_close(found, dict(whole.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("size", [3, 7, 12])
@pytest.mark.parametrize("microbatches", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("parts", "shape"),
    [(tiny.conv_parts(3, SHAPE), SHAPE), (tiny.linear_parts(3), (5,))],
    ids=["convolutions", "vectors"],
)
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(
    parts: list[nn.Sequential], shape: tuple[int, ...], microbatches: int, size: int
) -> None:
    """On a network without BatchNorm; the micro-batches of 7 samples are not all of one size, of 3 some are empty."""
    images, labels = tiny.batch_of(shape, size=size)
    pieces = staged_gradients(parts, images, labels, microbatches)
    exact = plain_gradients(nn.Sequential(*parts), images, labels)
    torch.testing.assert_close(pieces, exact, rtol=1e-10, atol=1e-12)


def test_batchnorm_sees_a_micro_batch() -> None:
    """The one inexactness of a pipeline, so that its absence above is no accident."""
    torch.manual_seed(0)
    net = build("resnet8", SHAPE, 3).double()
    images, labels = tiny.batch_of(SHAPE, size=8)
    pieces = staged_gradients(cut(net, (2,)), images, labels, 2)
    exact = plain_gradients(net, images, labels)
    assert any(not torch.allclose(mine, whole, rtol=1e-3) for mine, whole in zip(pieces, exact, strict=True))


def test_the_reported_loss_is_the_sum_over_the_samples() -> None:
    parts = tiny.linear_parts(3)
    images, labels = tiny.batch_of((5,), size=7)
    results = tiny.step(Backprop(3), tiny.make_stages(parts, images), images, labels, {})
    exact = F.cross_entropy(nn.Sequential(*parts)(images), labels, reduction="sum")
    assert results[-1].tally.terms["phi"] == pytest.approx(exact.item())
    assert [r.tally.samples for r in results] == [7, 7, 7]


def test_a_first_stage_may_have_no_weights() -> None:
    net = [nn.Sequential(nn.Flatten()), nn.Sequential(nn.Linear(64, 3)).double()]
    images, labels = tiny.batch_of(SHAPE)
    stages = tiny.make_stages(net, images)
    before = tiny.weights(stages)
    tiny.step(Backprop(2), stages, images, labels, {})
    assert not torch.equal(before[0], tiny.weights(stages)[0])


@pytest.mark.parametrize("microbatches", [1, 3, 5])
@pytest.mark.parametrize("cuts", [(), (2,), (1, 3)])
def test_a_full_batch_in_micro_batches_is_gradient_descent(cuts: tuple[int, ...], microbatches: int) -> None:
    """θ ← θ − lr ∇ mean loss, written out by autograd on the whole network, for several steps."""
    torch.manual_seed(3)
    net = build("cnn", SHAPE, 3).double()
    images, labels = tiny.batch_of(SHAPE, size=11)
    stages = tiny.make_stages(cut(net, cuts), images, lr=0.2, momentum=0.0)
    exact, losses = [p.detach().clone() for p in net.parameters()], []
    for _ in range(4):
        with torch.no_grad():
            for p, value in zip(net.parameters(), exact, strict=True):
                p.copy_(value)
        losses.append(float(F.cross_entropy(net(images), labels, reduction="sum").detach()))
        exact = [p - 0.2 * g for p, g in zip(exact, plain_gradients(net, images, labels), strict=True)]
        tally = tiny.step(Backprop(microbatches), stages, images, labels, {})[-1].tally
        assert tally.terms["phi"] == pytest.approx(losses[-1], rel=1e-10)
        torch.testing.assert_close(tiny.weights(stages), exact, rtol=1e-10, atol=1e-12)
    assert losses[-1] < losses[0]


class Traced(nn.Module):
    """Notes when a piece goes forward through here, and when its gradient comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(f"F{len(x)}")
        if x.requires_grad:
            x.register_hook(lambda grad: self.seen.append(f"B{len(grad)}"))
        return x


IN_TURN, BY_KIND = ["F2", "B2", "F2", "B2", "F3", "B3"], ["F2", "F2", "F3", "B2", "B2", "B3"]


@pytest.mark.parametrize(
    ("parts", "order", "passes"),
    [(1, "1f1b", IN_TURN), (1, "gpipe", IN_TURN), (2, "1f1b", IN_TURN), (2, "gpipe", BY_KIND)],
)
def test_the_order_of_the_last_stage(parts: int, order: Order, passes: list[str]) -> None:
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3), Traced()).double()
    images, labels = tiny.batch_of((5,), size=7)
    stages = tiny.make_stages([net] if parts == 1 else [net[:1], net[1:]], images)
    tiny.step(Backprop(3, order), stages, images, labels, {})
    [traced] = [m for m in stages[-1].blocks.modules() if isinstance(m, Traced)]
    assert traced.seen == passes


@pytest.mark.parametrize("name", NETS)
def test_one_stage_and_two_add_up_in_the_same_order_bit_for_bit(name: str) -> None:
    torch.manual_seed(3)
    options = dict(NETS[name])
    net = build(options.pop("name"), SHAPE, 3, **options)
    images, labels = tiny.batch_of(SHAPE, size=11, dtype=torch.float32)
    one, two = (staged_gradients(cut(net, cuts), images, labels, 4) for cuts in ((), (2,)))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("cuts", [(), (2,), (1, 3, 4)])
@pytest.mark.parametrize("microbatches", [2, 3, 5])
def test_orders_and_recomputation_give_the_same_bits(
    net: nn.Sequential, cuts: tuple[int, ...], microbatches: int
) -> None:
    net[1] = nn.Sequential(net[1], nn.Dropout(0.3))
    images, labels = tiny.batch_of(SHAPE, size=13, dtype=torch.float32)
    found = []
    for order, recompute, deferred in product(ORDERS, (False, True), (False, True)):
        method = Backprop(microbatches, order, recompute=recompute, deferred=deferred)
        stages = tiny.make_stages(cut(net, cuts), images, clip=0.5)
        for number in range(3):
            for s in stages:
                s.blocks.train()
                s.at(0, number)
            tiny.step(method, stages, images, labels, {})
        found.append([t for s in stages for t in s.state().values()])
    torch.testing.assert_close(found[1:], found[:1] * (len(found) - 1), rtol=0, atol=0)


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_the_neighbour_has_its_gradient_before_a_weight_has_its_own(microbatches: int) -> None:
    """With deferred gradients, and those of no more than two micro-batches wait when the last of two stages goes on."""
    parts = [nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)) for _ in range(2)]
    images, labels = tiny.batch_of((5,), size=6, dtype=torch.float32)
    stages = tiny.make_stages(parts, images)
    stages[1].deferred.looked = True  # as behind the first pass of a run
    method = Backprop(microbatches, deferred=True)
    program = method.step(stages[1], {}, tiny.batch_for(stages[1], images, labels))
    assert tiny.waiting_at_gradients(program, stages[1]) == [2, 4, 6, 6][:microbatches]
    (alone,) = tiny.make_stages([nn.Sequential(*parts)], images)  # one that waits for nobody
    with patch.object(alone.deferred, "active") as active:
        tiny.step(method, [alone], images, labels, {})
    assert not active.called
    assert [len(s.deferred) for s in stages] == [0, 0]


@pytest.mark.parametrize(
    ("microbatches", "order", "left"), [(1, "1f1b", 0), (2, "1f1b", 0), (4, "1f1b", 2), (4, "zb", 1), (4, "gpipe", 0)]
)
def test_the_first_stage_leaves_weight_gradients_where_forward_passes_are_to_come(
    microbatches: int, order: Order, left: int
) -> None:
    """Of so many micro-batches; nobody waits for what it does after them."""
    parts = [nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5)) for _ in range(2)]
    images, labels = tiny.batch_of((5,), size=8, dtype=torch.float32)
    stages = tiny.make_stages(parts, images)
    for s in stages:
        s.deferred.looked = True  # as behind the first pass of a run
    tiny.step(Backprop(microbatches, order, deferred=True), stages, images, labels, {})
    assert [s.deferred.count for s in stages] == [2 * left, 2 * microbatches]


def test_recomputation_keeps_inputs_only() -> None:
    """Of a micro-batch in flight no activation inside the stage is alive, where the kept graph has them all."""
    kept = {}
    for recompute in (False, True):
        parts = [nn.Sequential(nn.Linear(5, 5), nn.Sigmoid(), nn.Linear(5, 5)) for _ in range(2)]
        stages = tiny.make_stages(parts, torch.zeros(6, 5))
        inside: list[weakref.ref[Tensor]] = []
        stages[0].blocks[1].register_forward_hook(
            lambda block, inputs, output, inside=inside: inside.append(weakref.ref(output))
        )
        alive: list[int] = []
        stages[1].blocks[0].register_forward_hook(
            lambda *_, inside=inside, alive=alive: alive.append(sum(each() is not None for each in inside))
        )
        images, labels = tiny.batch_of((5,), size=6, dtype=torch.float32)
        tiny.step(Backprop(3, "gpipe", recompute), stages, images, labels, {})
        kept[recompute] = max(alive)
    assert kept == {False: 3, True: 0}


def test_recomputation_goes_through_a_stage_again_only_where_other_passes_come_between() -> None:
    """Forward and backward follow each other at once on the last stage in 1F1B order."""
    net = nn.Sequential(nn.Linear(5, 5), Traced(), nn.Linear(5, 3), Traced()).double()
    images, labels = tiny.batch_of((5,), size=6)
    stages = tiny.make_stages([net[:2], net[2:]], images)
    tiny.step(Backprop(3, "1f1b", recompute=True), stages, images, labels, {})
    passes = [next(m.seen for m in s.blocks.modules() if isinstance(m, Traced)).count("F2") for s in stages]
    assert passes == [6, 3]


@pytest.mark.parametrize("cuts", [(), (2,)])
def test_running_statistics_move_once_a_mini_batch(cuts: tuple[int, ...]) -> None:
    """To the mean of the micro-batches' statistics, from torch's own BatchNorm with momentum 1 on each of them."""
    torch.manual_seed(0)
    net = build("resnet8", SHAPE, 3).double()
    for block in net.modules():
        if isinstance(block, nn.BatchNorm2d):
            nn.init.normal_(tiny.statistics_of(block)[0])
    whole, images, labels = copy.deepcopy(net), *tiny.batch_of(SHAPE, size=12)
    stages = tiny.make_stages(cut(net, cuts), images)
    for s in stages:
        s.blocks.train()
    tiny.step(Backprop(3), stages, images, labels, {})

    norms = {name: m for name, m in whole.named_modules() if isinstance(m, nn.BatchNorm2d)}
    old = {name: tuple(t.clone() for t in tiny.statistics_of(m)) for name, m in norms.items()}
    seen: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in norms}
    whole.train()
    for piece in images.split(4):
        for m in norms.values():
            m.momentum = 1.0
        whole(piece)
        for name, m in norms.items():
            seen[name].append(tuple(t.clone() for t in tiny.statistics_of(m)))
    state = {name: value for s in stages for name, value in s.state().items()}
    for name in norms:
        for index, statistic in enumerate(("running_mean", "running_var")):
            mean = torch.stack([pair[index] for pair in seen[name]]).mean(0)
            torch.testing.assert_close(state[f"{name}.{statistic}"], 0.9 * old[name][index] + 0.1 * mean)
        assert state[f"{name}.num_batches_tracked"] == 1
