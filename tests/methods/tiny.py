"""Tiny networks cut into stages, and one step of a method on all of them in lockstep."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from hpcsplit.methods.contract import Batch, StepResult, TrainingMethod, own_variables
from hpcsplit.split.stage import Stage
from hpcsplit.wire import lockstep

CLASSES = 3
Rows = Mapping[str, Sequence[torch.Tensor]]  # by variable and stage


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


def batch_of(shape: tuple[int, ...], size: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Images and labels."""
    random = torch.Generator().manual_seed(size)
    images = torch.randn(size, *shape, dtype=dtype, generator=random)
    return images, torch.randint(CLASSES, (size,), generator=random)


def make_stages(
    parts: Sequence[nn.Sequential],
    images: torch.Tensor,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    **options: Any,
) -> list[Stage]:
    """Stages over copies of `parts`, each with its own SGD."""
    twins = copy.deepcopy(list(parts))
    shapes = boundaries(parts, images)
    return [
        Stage(
            k,
            len(twins),
            part,
            edges,
            lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum),
            dtype=images.dtype,
            **options,
        )
        for k, (part, edges) in enumerate(zip(twins, pairwise(shapes), strict=True))
    ]


def boundaries(parts: Sequence[nn.Sequential], images: torch.Tensor) -> list[tuple[int, ...]]:
    """Shapes of one sample from the images to the logits."""
    return [tuple(x.shape[1:]) for x in activations(parts, images)]


def activations(parts: Sequence[nn.Sequential], images: torch.Tensor) -> list[torch.Tensor]:
    """The images, then every stage's output in one exact forward pass, with statistics left as they are."""
    values = [images]
    with torch.no_grad():
        for part in copy.deepcopy(list(parts)):
            values.append(part(values[-1]))
    return values


def random_rows(method: TrainingMethod, stages: Sequence[Stage], size: int) -> dict[str, list[torch.Tensor]]:
    """Arbitrary values of every variable; an empty tensor where a stage has none."""
    random = torch.Generator().manual_seed(7)
    rows: dict[str, list[torch.Tensor]] = {}
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
    method: TrainingMethod, stages: Sequence[Stage], images: torch.Tensor, labels: torch.Tensor, rows: Rows
) -> list[StepResult]:
    """One step of every stage; `rows` of input variables, whose copies go to the stage before."""
    return lockstep.run([method.step(s, aux_of(s, rows), batch_for(s, images, labels)) for s in stages])


def aux_of(stage: Stage, rows: Rows) -> dict[str, torch.Tensor]:
    """What the engine would hand a stage: copies of its own rows and of its neighbours', where there are any."""
    aux = {}
    for name, by_stage in rows.items():
        for label, index in (("", stage.index), ("next_", stage.index + 1), ("prev_", stage.index - 1)):
            if 0 <= index < len(by_stage) and by_stage[index].numel():
                aux[label + name] = by_stage[index].clone()
    return aux


def batch_for(stage: Stage, images: torch.Tensor, labels: torch.Tensor) -> Batch:
    size = len(images)
    return Batch(range(size), size, images if stage.first else torch.empty(0), labels if stage.last else torch.empty(0))


def weights(stages: Sequence[Stage]) -> list[torch.Tensor]:
    """Every stage's parameters, in layer order, copied."""
    return [p.detach().clone() for s in stages for p in s.parameters]
