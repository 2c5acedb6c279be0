"""Tiny networks cut into stages, and one step of a method on all of them in lockstep."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcsplit.config.declared import DeclaredMethod
from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import Batch, Step, StepResult, TrainingMethod, own_variables
from hpcsplit.stage.stage import Stage
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import NEXT, PREV, Recv, Send

CLASSES = 3
Rows = Mapping[str, Sequence[Tensor]]  # by variable and stage


def conv_parts(count: int, shape: tuple[int, ...], *, kernel: int = 3, classes: int = CLASSES) -> list[nn.Sequential]:
    """`count` stages for images of `shape` in float64, without BatchNorm; inner boundaries are (2, H, W)."""
    torch.manual_seed(count)
    _, height, width = shape
    parts = []
    for k in range(count):
        layers = [nn.Conv2d(shape[0] if k == 0 else 2, 2, kernel, padding=kernel // 2), nn.Tanh()]
        if k == count - 1:
            layers += [nn.Flatten(), nn.Linear(2 * height * width, classes)]
        parts.append(nn.Sequential(*layers).double())
    return parts


def linear_parts(count: int, width: int = 5) -> list[nn.Sequential]:
    """`count` stages for vectors of `width` in float64."""
    torch.manual_seed(count)
    parts = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(count - 1)]
    return [part.double() for part in [*parts, nn.Sequential(nn.Linear(width, CLASSES))]]


def mlp_parts(
    count: int, shape: tuple[int, ...], *, depth: int = 3, width: int = 4, classes: int = CLASSES
) -> list[nn.Sequential]:
    """`count` stages of the feed-forward network in float64, cut evenly; the same weights for every `count`."""
    torch.manual_seed(depth)
    sizes = [math.prod(shape), *[width] * depth]
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU(inplace=True)) for a, b in pairwise(sizes)]
    layers[0].insert(0, nn.Flatten())
    blocks = [*layers, nn.Linear(width, classes)]
    ends = [round(k * len(blocks) / count) for k in range(count + 1)]
    return [nn.Sequential(*blocks[a:b]).double() for a, b in pairwise(ends)]


def parts_for(declared: DeclaredMethod, shape: tuple[int, ...]) -> list[nn.Sequential]:
    """Stages that the method can train: three, and of convolutions, where it does not say otherwise."""
    count = declared.stages or 3
    return mlp_parts(count, shape) if declared.network == "mlp" else conv_parts(count, shape)


def batch_of(shape: tuple[int, ...], size: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    random = torch.Generator().manual_seed(size)
    images = torch.randn(size, *shape, dtype=dtype, generator=random)
    return images, torch.randint(CLASSES, (size,), generator=random)


def make_stages(
    parts: Sequence[nn.Sequential],
    images: Tensor,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    **options: Any,
) -> list[Stage]:
    """Stages over copies of `parts`, each with its own SGD."""
    twins = copy.deepcopy(list(parts))
    shapes = [tuple(x.shape[1:]) for x in activations([nn.Sequential(b) for part in parts for b in part], images)]
    ends = list(accumulate((len(part) for part in parts), initial=0))
    return [
        Stage(
            k,
            len(twins),
            part,
            shapes[begin : end + 1],
            lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay),
            dtype=images.dtype,
            first_block=begin,
            net_blocks=ends[-1],
            **options,
        )
        for k, (part, (begin, end)) in enumerate(zip(twins, pairwise(ends), strict=True))
    ]


def boundaries(parts: Sequence[nn.Sequential], images: Tensor) -> list[tuple[int, ...]]:
    """Shapes of one sample from the images to the logits."""
    return [tuple(x.shape[1:]) for x in activations(parts, images)]


def activations(parts: Sequence[nn.Sequential], images: Tensor) -> list[Tensor]:
    """The images, then every stage's output in one exact forward pass, with statistics left as they are."""
    values = [images]
    with torch.no_grad():
        for part in copy.deepcopy(list(parts)):
            values.append(part(values[-1]))
    return values


def random_rows(method: TrainingMethod, stages: Sequence[Stage], size: int) -> dict[str, list[Tensor]]:
    """Arbitrary values of every variable; an empty tensor where a stage has none."""
    random = torch.Generator().manual_seed(7)
    rows: dict[str, list[Tensor]] = {}
    own = [{v.name: v for v in own_variables(method, s.place)} for s in stages]
    for name in dict.fromkeys(name for variables in own for name in variables):
        rows[name] = [
            torch.randn(size, *variables[name].row_shape(s.place), dtype=s.wide, generator=random)
            if name in variables
            else torch.empty(0)
            for s, variables in zip(stages, own, strict=True)
        ]
    return rows


def step(
    method: TrainingMethod, stages: Sequence[Stage], images: Tensor, labels: Tensor, rows: Rows
) -> list[StepResult]:
    """One step of every stage; `rows` of input variables, whose copies go to the stage before."""
    return lockstep.run([method.step(s, aux_of(s, rows), batch_for(s, images, labels)) for s in stages])


def trained_beside(
    whole: nn.Module, net: nn.Sequential, cuts: Sequence[int], images: Tensor, labels: Tensor
) -> list[Stage]:
    """The stages of `net`, cut there, after three exact steps; `whole` has taken them too, by plain torch."""
    stages = make_stages([net[a:b] for a, b in pairwise([0, *cuts, len(net)])], images, lr=0.1, momentum=0.9)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        step(Backprop(), stages, images, labels, {})
        optimizer.zero_grad()
        F.cross_entropy(whole(images), labels).backward()
        optimizer.step()
    return stages


def first_step(
    method: TrainingMethod,
    parts: Sequence[nn.Sequential],
    shape: tuple[int, ...],
    *,
    kappa: float = math.nan,
    **options: Any,
) -> tuple[list[Stage], dict[str, list[Tensor]], list[StepResult]]:
    """One step of new stages on random rows, with all multipliers `kappa` where that is a number."""
    images, labels = batch_of(shape)
    stages = make_stages(parts, images, **options)
    rows = random_rows(method, stages, len(images))
    for t in rows.get("kappa", ()) if math.isfinite(kappa) else ():
        t.fill_(kappa)
    return stages, rows, step(method, stages, images, labels, rows)


def listen(program: Any, heard: list[Any]) -> Any:
    """Hand on everything that a stage program yields, and note it."""
    answer = None
    while True:
        try:
            verb = program.send(answer)
        except StopIteration as end:
            return end.value
        heard.append(verb)
        answer = yield verb


def aux_of(stage: Stage, rows: Rows, method: TrainingMethod | None = None) -> dict[str, Tensor]:
    """What the engine would hand a stage: copies of its own rows and of its neighbours', where there are any; of those
    only what the method asks for, where it is told."""
    asked = {v.name: v.copy_to for v in method.variables(stage.place)} if method else {}
    aux = {}
    for name, by_stage in rows.items():
        for label, index, side in (
            ("", stage.index, None),
            ("next_", stage.index + 1, PREV),
            ("prev_", stage.index - 1, NEXT),
        ):
            wanted = not method or side is None or asked.get(name) == side
            if wanted and 0 <= index < len(by_stage) and by_stage[index].numel():
                aux[label + name] = by_stage[index].clone()
    return aux


def batch_for(stage: Stage, images: Tensor, labels: Tensor, method: TrainingMethod | None = None) -> Batch:
    """What the engine would hand a stage; images on every one where this method asks for them."""
    size, sees = len(images), stage.first or (method is not None and method.facts.images)
    return Batch(range(size), size, images if sees else torch.empty(0), labels if stage.last else torch.empty(0))


def gradient_of(t: Tensor) -> Tensor:
    assert t.grad is not None
    return t.grad


def statistics_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The running mean and variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def weights(stages: Sequence[Stage]) -> list[Tensor]:
    """Every stage's parameters, in layer order, copied."""
    return [p.detach().clone() for s in stages for p in s.parameters]


def waiting_at_gradients(program: Step, stage: Stage) -> list[int]:
    """Of a stage's step beside neighbours that send anything: how many weight gradients wait whenever it sends one."""
    waiting: list[int] = []
    answer: Tensor | None = None
    with suppress(StopIteration):
        while True:
            verb = program.send(answer)
            answer = torch.randn(verb.shape, dtype=verb.dtype) if isinstance(verb, Recv) else None
            if isinstance(verb, Send) and verb.name == "g":
                waiting.append(len(stage.deferred))
    return waiting
