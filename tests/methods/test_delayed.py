"""Delayed gradients against whole-network autograd, and against a transcription of the recursion in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.methods.contract import Talk
from hpcsplit.methods.delayed import Delayed
from hpcsplit.stage.carry import Carry
from hpcsplit.stage.stage import Stage
from hpcsplit.wire import lockstep
from tests.methods.tiny import (
    CLASSES,
    batch_for,
    batch_of,
    conv_parts,
    linear_parts,
    make_stages,
    waiting_at_gradients,
)
from tests.methods.tiny import weights as weights_of

STEPS, LR, MOMENTUM, DECAY = 9, 0.2, 0.7, 0.01
Batches = Sequence[tuple[Tensor, Tensor]]
SHARP: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}
VARIANTS = ["stash", "replay", "stale", "2bw"]


def epoch(method: Delayed, stage: Stage, batches: Batches, *, goes_on: bool = False, number: int = 0) -> Talk:
    """An epoch of one stage as the engine has it."""
    for step, (images, labels) in enumerate(batches):
        stage.at(number, step)
        yield from method.step(stage, {}, batch_for(stage, images, labels))
    yield from method.drain(stage, goes_on=goes_on)


def run(method: Delayed, stages: Sequence[Stage], batches: Batches, **options: Any) -> None:
    lockstep.run([epoch(method, stage, batches, **options) for stage in stages])


def vectors(count: int = STEPS, width: int = 5) -> Batches:
    """Mini-batches of vectors, the last one smaller."""
    random = torch.Generator().manual_seed(count)
    sizes = [4] * (count - 1) + [3]
    return [
        (torch.randn(n, width, dtype=torch.float64, generator=random), torch.randint(CLASSES, (n,), generator=random))
        for n in sizes
    ]


def gradients_noted(stages: Sequence[Stage]) -> list[list[list[Tensor]]]:
    """For each stage the gradients of every update from now on."""
    noted: list[list[list[Tensor]]] = [[] for _ in stages]

    def noting(stage: Stage, update: Callable[[int], None]) -> Callable[[int], None]:
        def noted_update(samples: int = 1) -> None:
            noted[stage.index].append([p.grad.clone() for p in stage.parameters if p.grad is not None])
            update(samples)

        return noted_update

    for stage in stages:
        stage.update = noting(stage, stage.update)  # type: ignore[method-assign,assignment]
    return noted


@pytest.mark.parametrize(("timetable", "pieces"), [("1f1b", 1), ("step", 1), ("1f1b", 2), ("1f1b", 4), ("step", 5)])
@pytest.mark.parametrize("weights", VARIANTS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_with_zero_learning_rate_the_gradient_is_the_exact_one(
    count: int, weights: str, timetable: str, pieces: int
) -> None:
    shape = (1, 6, 6)
    parts = conv_parts(count, shape)
    batches = [batch_of(shape, size) for size in (5, 6, 4, 7, 5, 3)]
    stages = make_stages(parts, batches[0][0], lr=0.0)
    noted = gradients_noted(stages)
    run(Delayed(weights=weights, timetable=timetable, microbatches=pieces), stages, batches)
    whole = nn.Sequential(*parts)
    for step, (images, labels) in enumerate(batches):
        exact = torch.autograd.grad(F.cross_entropy(whole(images), labels), list(whole.parameters()))
        delayed = [g for by_stage in noted for g in by_stage[step]]
        torch.testing.assert_close(delayed, exact, **SHARP)
    assert [len(by_stage) for by_stage in noted] == [len(batches)] * count


@pytest.mark.parametrize(("timetable", "pieces"), [("1f1b", 2), ("1f1b", 4), ("step", 5)])
@pytest.mark.parametrize("count", [2, 3])
def test_of_one_update_ago_all_stages_take_the_exact_gradient(count: int, timetable: str, pieces: int) -> None:
    """PipeDream-2BW: W_{b+1} = W_b - η ∇φ(W_{b-1}) of the whole network, whatever the number of stages is."""
    shape = (1, 6, 6)
    batches = [batch_of(shape, size) for size in (5, 6, 7, 8, 5)]
    stages = make_stages(conv_parts(count, shape), batches[0][0], lr=LR, momentum=0.0)
    run(Delayed(weights="2bw", timetable=timetable, microbatches=pieces), stages, batches)
    whole = nn.Sequential(*conv_parts(count, shape))
    versions = [[p.detach().clone() for p in whole.parameters()]]
    for number, (images, labels) in enumerate(batches):
        for p, old in zip(whole.parameters(), versions[max(0, number - 1)], strict=True):
            p.data.copy_(old)
        slopes = torch.autograd.grad(F.cross_entropy(whole(images), labels), list(whole.parameters()))
        versions.append([w - LR * g for w, g in zip(versions[-1], slopes, strict=True)])
    torch.testing.assert_close(weights_of(stages), versions[-1], **SHARP)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_predicted_weights_follow_adam(kind: type[torch.optim.Optimizer]) -> None:
    """W - d η m̂ / (√v̂ + ε), with the moments worked out from the gradients; none before the first step."""
    stages = make_stages(linear_parts(2), vectors()[0][0])
    stage = stages[0]
    stage.optimizer = kind(stage.parameters, lr=0.05, betas=(0.7, 0.8), eps=1e-3)  # type: ignore[call-arg]
    noted, method = gradients_noted(stages), Delayed(predict=True)
    seen: list[list[Tensor]] = []
    forward = stage.forward

    def noting(x: Tensor, weights: Any = None) -> Tensor:
        seen.append([w.detach().clone() for w in weights.values()])
        here.append([p.detach().clone() for p in stage.parameters])
        return forward(x, weights)

    here: list[list[Tensor]] = []
    stage.forward = noting  # type: ignore[method-assign]
    run(method, stages, vectors())
    for number in range(STEPS):
        done = noted[0][: max(0, number - 1)]  # updates before the forward pass of this mini-batch, one in flight
        for i, (used, own) in enumerate(zip(seen[number], here[number], strict=True)):
            m, v = torch.zeros_like(own), torch.zeros_like(own)
            for step in done:
                m, v = 0.7 * m + 0.3 * step[i], 0.8 * v + 0.2 * step[i] ** 2
            t = max(len(done), 1)
            ahead = 0.05 * (m / (1 - 0.7**t)) / ((v / (1 - 0.8**t)).sqrt() + 1e-3)
            torch.testing.assert_close(used, own - (ahead if done else 0), rtol=1e-12, atol=1e-14)


@dataclass
class Layer:
    """A stage of the transcription: weights and momentum after each of its updates, and what it has in flight."""

    w: list[np.ndarray]
    b: list[np.ndarray]
    vw: np.ndarray
    vb: np.ndarray
    seen: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)


def transcribed(
    parts: Sequence[nn.Sequential],
    batches: Batches,
    delays: Sequence[int],
    weights: str,
    *,
    predict: bool = False,
    compensation: float = 0.0,
    lr_anneal: int = 0,
    spike: bool = False,
    feedback: float = 0.0,
    microbatches: int = 1,
) -> list[np.ndarray]:
    """The recursion for tanh layers and a linear one on top, in global order; the final weights.

    Piece m of mini-batch b goes through all stages with the weights that they have after max(0, b − ceil((d − m) / M))
    updates, with "2bw" the first stage's delay and m = 0 everywhere; its gradient comes back through all of them, and
    the sum over the pieces is update number b of each.  The first gradients are younger than d, and the corrections
    take them so.
    """
    uniform = math.ceil(delays[0] / microbatches)
    nominal = [float(uniform) if weights == "2bw" else d / microbatches for d in delays]
    steps: list[Any] = [None] * len(delays)
    layers = []
    for part in parts:
        w, b = (p.detach().numpy().copy() for p in part[0].parameters())
        layers.append(Layer([w], [b], np.zeros_like(w), np.zeros_like(b)))
    momenta: list[list[tuple[np.ndarray, np.ndarray]]] = [[(m.vw.copy(), m.vb.copy())] for m in layers]

    def rate(k: int, age: float, done: int) -> float:
        """Of stage k's update when it has begun so many steps."""
        power = 1 - min(done / lr_anneal, 1) if lr_anneal and nominal[k] else 0
        return LR / (1 + age) ** power

    for number, (images, labels) in enumerate(batches):
        sums = [(np.zeros_like(layer.vw), np.zeros_like(layer.vb)) for layer in layers]
        ages = [0.0] * len(layers)  # mean over the samples
        pieces = zip(*(t.tensor_split(cuts_of(len(images), microbatches)) for t in (images, labels)), strict=True)
        for m, (some, targets) in enumerate(pieces):
            x = some.numpy()
            kept = []
            for k, layer in enumerate(layers):
                ago = uniform if weights == "2bw" else math.ceil(max(delays[k] - m, 0) / microbatches)
                version = max(0, number - ago)
                age = number - version
                ages[k] += age * len(some) / len(images)
                wf, bf = layer.w[version], layer.b[version]
                if predict:
                    vw, vb = momenta[k][version]
                    ahead = age * rate(k, nominal[k], number + 1)
                    wf, bf = wf - ahead * vw, bf - ahead * vb
                z = x @ wf.T + bf
                y = np.tanh(z) if k + 1 < len(layers) else z
                kept.append((x, y, wf, bf))
                x = y
            odds = np.exp(x - x.max(axis=1, keepdims=True))
            g = (odds / odds.sum(axis=1, keepdims=True) - np.eye(CLASSES)[targets.numpy()]) / len(images)
            for k in reversed(range(len(layers))):
                layer, (x, y, wf, bf) = layers[k], kept[k]
                w, b = layer.w[-1], layer.b[-1]
                if weights == "replay" and k + 1 < len(layers):
                    y = np.tanh(x @ w.T + b)
                slope = g * (1 - y**2) if k + 1 < len(layers) else g
                gw, gb = slope.T @ x, slope.sum(axis=0)
                g = slope @ (wf if weights in ("stash", "2bw") else w)
                if compensation:  # of the mean over the piece, which has so many of the mini-batch's samples
                    by = compensation * len(images) / len(some)
                    gw, gb = gw + by * gw**2 * (w - wf), gb + by * gb**2 * (b - bf)
                sums[k] = sums[k][0] + gw, sums[k][1] + gb
        for k, (layer, (gw, gb)) in enumerate(zip(layers, sums, strict=True)):
            w, b, d = layer.w[-1], layer.b[-1], ages[k]
            begun = min(number + 1 + math.ceil(delays[k] / microbatches), len(batches))
            gw, gb = gw + DECAY * w, gb + DECAY * b
            layer.vw, layer.vb = MOMENTUM * layer.vw + gw, MOMENTUM * layer.vb + gb
            share = MOMENTUM**d if spike else 1.0
            late = (1 - share) / (1 - MOMENTUM)
            uw = -rate(k, d, begun) * (share * layer.vw + late * gw)
            ub = -rate(k, d, begun) * (share * layer.vb + late * gb)
            lacked = [feedback * d * (u - u0) for u, u0 in zip((uw, ub), steps[k] or (uw, ub), strict=True)]
            steps[k] = uw, ub
            layer.w.append(w + uw + lacked[0])
            layer.b.append(b + ub + lacked[1])
            momenta[k].append((layer.vw, layer.vb))
    return [value for layer in layers for value in (layer.w[-1], layer.b[-1])]


def cuts_of(size: int, pieces: int) -> list[int]:
    """Where a mini-batch is cut; a small one has fewer pieces."""
    return sorted({size * m // pieces for m in range(1, pieces)} - {0})


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ("stash", {}),
        ("replay", {}),
        ("stale", {}),
        ("stash", {"predict": True}),
        ("replay", {"predict": True}),
        ("stash", {"compensation": 3.0}),
        ("stash", {"lr_anneal": 6}),
        ("stale", {"lr_anneal": 20}),
        ("stash", {"spike": True}),
        ("replay", {"spike": True, "predict": True, "lr_anneal": 20}),
        ("stale", {"spike": True}),
        ("stash", {"microbatches": 2}),
        ("replay", {"microbatches": 3, "predict": True}),
        ("stale", {"microbatches": 4}),
        ("stash", {"microbatches": 2, "compensation": 3.0}),
        ("stash", {"microbatches": 4, "spike": True, "predict": True, "lr_anneal": 20}),
        ("stash", {"feedback": 1.0}),
        ("replay", {"feedback": 0.5, "microbatches": 2, "predict": True}),
        ("2bw", {}),
        ("2bw", {"microbatches": 2}),
        ("2bw", {"microbatches": 4, "feedback": 0.5}),
        ("2bw", {"microbatches": 3, "predict": True, "spike": True}),
        ("2bw", {"microbatches": 4, "lr_anneal": 20}),
    ],
)
@pytest.mark.parametrize(("count", "timetable"), [(1, "1f1b"), (2, "1f1b"), (3, "1f1b"), (4, "1f1b"), (3, "step")])
def test_the_weights_are_those_of_the_recursion(
    count: int, timetable: str, weights: str, options: dict[str, Any]
) -> None:
    parts, batches = linear_parts(count), vectors()
    delays = [(count - 1 - k) * (2 if timetable == "step" else 1) for k in range(count)]
    stages = make_stages(parts, batches[0][0], lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    run(Delayed(weights=weights, timetable=timetable, **options), stages, batches)
    expected = transcribed(parts, batches, delays, weights, **options)
    torch.testing.assert_close(weights_of(stages), [*map(torch.from_numpy, expected)], rtol=1e-10, atol=1e-12)


def test_the_variants_differ() -> None:
    ends = []
    others = Delayed(timetable="step"), Delayed(predict=True), Delayed(compensation=3.0), Delayed(lr_anneal=6)
    more = Delayed(spike=True), Delayed(feedback=1.0), Delayed(microbatches=2)
    for method in (*(Delayed(weights=weights) for weights in VARIANTS), *others, *more):
        batches = vectors()
        stages = make_stages(linear_parts(3), batches[0][0], lr=LR, momentum=MOMENTUM)
        run(method, stages, batches)
        ends.append(torch.cat([p.flatten() for p in weights_of(stages[:1])]))
    for i, a in enumerate(ends):
        assert all(float((a - b).abs().max()) > 1e-6 for b in ends[:i])


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("weights", VARIANTS)
def test_batchnorm_takes_one_statistics_step_a_mini_batch(weights: str, pieces: int) -> None:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).double()
    second = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, CLASSES)).double()
    batches = [batch_of((1, 6, 6), size) for size in (5, 6, 7, 4)]
    stages = make_stages([first, second], batches[0][0], lr=0.0)
    for stage in stages:
        stage.blocks.train()
    run(Delayed(weights=weights, microbatches=pieces), stages, batches)
    cut = [images.tensor_split(cuts_of(len(images), pieces)) for images, _ in batches]
    inputs = [[first[0](some).detach() for some in images] for images in cut]
    outputs = [[F.relu(F.batch_norm(x, None, None, training=True)) for x in xs] for xs in inputs]
    for norm, seen in ((stages[0].blocks[1], inputs), (stages[1].blocks[0], outputs)):
        mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        for xs in seen:
            mean = 0.9 * mean + 0.1 * torch.stack([x.mean((0, 2, 3)) for x in xs]).mean(0)
            var = 0.9 * var + 0.1 * torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in xs]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-14)
        assert int(norm.get_buffer("num_batches_tracked")) == len(batches)


@pytest.mark.parametrize("weights", VARIANTS)
def test_a_mini_batch_of_one_sample_leaves_waiting_graphs_whole(weights: str) -> None:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)) for _ in range(3)]
    parts.append(nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES)))
    batches = [batch_of((1, 6, 6), size) for size in (4, 4, 1, 4, 4)]
    stages = make_stages([part.double() for part in parts], batches[0][0])
    for stage in stages:
        stage.blocks.train()
    run(Delayed(weights=weights, microbatches=2, epoch_end="run"), stages, batches)
    assert all(stage.finite() for stage in stages)


def test_a_layer_that_is_left_out_of_a_piece_keeps_the_others_gradients() -> None:
    class Sometimes(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x) if self.calls % 2 else x

    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(5, 5), Sometimes(5, 5)), nn.Sequential(nn.Linear(5, CLASSES))]
    parts = [part.double() for part in parts]
    batches = vectors(3)
    stages = make_stages(parts, batches[0][0], lr=0.0)
    noted = gradients_noted(stages)
    run(Delayed(microbatches=2), stages, batches)
    weights = list(parts[0][1].parameters())
    for (images, labels), found in zip(batches, noted[0], strict=True):
        n = len(images) // 2
        logits = parts[1](F.linear(parts[0][0](images[:n]), *weights))
        exact = torch.autograd.grad(F.cross_entropy(logits, labels[:n], reduction="sum") / len(images), weights)
        torch.testing.assert_close(found[2:], list(exact), rtol=1e-12, atol=1e-14)


def test_a_replay_draws_the_same_random_numbers() -> None:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)), nn.Sequential(nn.Linear(5, CLASSES))]
    parts = [part.double() for part in parts]
    found = []
    for weights in VARIANTS:
        stages = make_stages(parts, vectors()[0][0], lr=0.0)
        noted = gradients_noted(stages)
        run(Delayed(weights=weights), stages, vectors())
        found.append(noted[0])
    assert any(float(g.abs().max()) for by_step in found[0] for g in by_step)
    torch.testing.assert_close(found[1:], found[:1] * 3, **SHARP)


@pytest.mark.parametrize(("timetable", "factor"), [("1f1b", 1), ("step", 2)])
@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_stage_keeps_as_much_in_flight_as_its_delay(count: int, pieces: int, timetable: str, factor: int) -> None:
    method, batches = Delayed(timetable=timetable, microbatches=pieces), vectors(14)
    stages = make_stages(linear_parts(count), batches[0][0])
    most = [0] * count

    def watched(stage: Stage) -> Talk:
        for step, (images, labels) in enumerate(batches):
            stage.at(0, step)
            yield from method.step(stage, {}, batch_for(stage, images, labels))
            most[stage.index] = max(most[stage.index], sum(key.endswith("/x") for key in stage.carry))
        yield from method.drain(stage, goes_on=False)

    lockstep.run([watched(stage) for stage in stages])
    assert most == [factor * (count - 1 - k) for k in range(count)]
    assert [method.delay(k, count) * pieces for k in range(count)] == most
    assert not [key for s in stages for key in s.carry if "/x" in key and "used" not in key]


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_epochs_that_run_through_are_one_long_epoch(count: int, pieces: int) -> None:
    method, batches = Delayed(epoch_end="run", microbatches=pieces), vectors()
    ends = []
    for epochs in ([batches], [batches[:4], batches[4:5], batches[5:]]):
        stages = make_stages(linear_parts(count), batches[0][0])
        for number, few in enumerate(epochs):
            run(method, stages, few, goes_on=number + 1 < len(epochs), number=number)
        ends.append(weights_of(stages))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


@pytest.mark.parametrize("weights", VARIANTS)
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("stop", range(1, 7))
def test_what_is_in_flight_goes_on_from_plain_values(weights: str, stop: int, pieces: int) -> None:
    """As after a checkpoint: values without graphs, and every message received."""
    method, batches = Delayed(weights=weights, timetable="step", microbatches=pieces), vectors()
    ends = []
    for pauses in (False, True):
        stages = make_stages(linear_parts(3), batches[0][0], lr=LR)

        def part(stage: Stage, begin: int, end: int) -> Talk:
            for step in range(begin, end):
                stage.at(0, step)
                yield from method.step(stage, {}, batch_for(stage, *batches[step]))
            yield from method.drain(stage, goes_on=False) if end == STEPS else method.settle(stage)

        edges = [0, stop, STEPS] if pauses else [0, STEPS]
        for begin, end in pairwise(edges):
            lockstep.run([part(stage, begin, end) for stage in stages])
            for stage in stages:
                stage.carry = Carry({name: t.detach().clone() for name, t in stage.carry.items()})
        ends.append([p.detach() for s in stages for p in s.parameters])
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)


@pytest.mark.parametrize("pieces", [1, 2])
def test_what_was_used_is_the_last_mini_batchs(pieces: int) -> None:
    method, batches = Delayed(microbatches=pieces), vectors()
    parts = linear_parts(2)
    stages = make_stages(parts, batches[0][0], lr=0.0)
    run(method, stages, batches)
    images, labels = batches[-1]
    y = parts[0](images)
    (g,) = torch.autograd.grad(F.cross_entropy(parts[1](y), labels, reduction="sum"), y)
    used = method.used(stages[0])
    assert used is not None
    rows = len(y) // pieces + 1 if pieces > 1 else len(y)  # of three, the last piece has two
    torch.testing.assert_close(used, (y.detach()[-rows:], g[-rows:]))
    assert method.used(stages[0]) is None
    assert method.used(stages[1]) is None


@pytest.mark.parametrize("weights", VARIANTS)
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("count", [2, 3])
def test_weight_gradients_of_the_last_stage_that_wait_are_the_same_bits(count: int, pieces: int, weights: str) -> None:
    ends, halves = [], []
    for waits in (False, True):
        stages = make_stages(linear_parts(count), vectors()[0][0], lr=LR)
        for stage in stages:
            stage.defers = waits
        run(Delayed(weights=weights, microbatches=pieces), stages, vectors())
        ends.append(weights_of(stages))
        halves.append([stage.deferred.count for stage in stages])
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
    layers = STEPS * pieces - 1  # the first pass of all leaves them whole
    assert halves == [[0] * count, [0] * (count - 1) + [0 if weights == "2bw" else layers]]


@pytest.mark.parametrize("pieces", [1, 2])
def test_the_last_stages_neighbour_has_its_gradient_before_a_weight_has_its_own(pieces: int) -> None:
    stages = make_stages(linear_parts(2), vectors()[0][0])
    last = stages[1]
    last.defers = last.deferred.looked = True  # as behind the first pass of a run
    program = Delayed(microbatches=pieces).step(last, {}, batch_for(last, *vectors()[0]))
    assert waiting_at_gradients(program, last) == [1] * pieces  # of one layer, and of no micro-batch before
    assert not last.deferred
