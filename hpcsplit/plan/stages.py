"""What a configuration will need, from shapes alone: cuts, parameters, auxiliary bytes, memory of a rank.

Activations are what autograd keeps of a pass for its backward pass, counted on meta tensors, so they are those of
float32 arithmetic; convolution kernels take room of their own beside it for moments, and Python with torch and MPI some
0.3 GB a rank, which no count here has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import nn

from hpcsplit.config.declared import declared_methods
from hpcsplit.errors import ConfigError
from hpcsplit.methods.contract import flights, own_variables
from hpcsplit.plan.setting import Setting, made
from hpcsplit.schedule.timetable import in_flight, timetable, waiting
from hpcsplit.stage.cuts import ranges, stage_shares
from hpcsplit.stage.stage import Place, Shape
from hpcsplit.store.hdf5 import AHEAD, BEHIND
from hpcsplit.store.store import Field, generation_bytes

_WIDE_BYTES = 4  # of a float32


@dataclass(frozen=True)
class StagePlan:
    """One stage as it will run.

    Store bytes are of one generation, row bytes of one sample's float32 values; edge bytes of a mini-batch's
    activations at the stage's output; FLOPs are multiply-adds, forward, of one sample.
    """

    stage: int
    first_block: str
    last_block: str
    blocks: int
    params: int
    flops: int
    share: float
    in_shape: Shape
    out_shape: Shape
    store_bytes: int
    row_bytes: int
    edge_bytes: int


def plan_stages(setting: Setting, cuts: Sequence[int], costs: Sequence[float]) -> list[StagePlan]:
    """The plan of every stage; `costs` are the blocks' costs in any unit."""
    _check_cells(setting, cuts)
    plans = []
    for k, (place, share) in enumerate(zip(_places(setting, cuts), stage_shares(costs, cuts), strict=True)):
        blocks = setting.blocks[place.first_block :][: len(place.shapes) - 1]
        own = own_variables(setting.method, place)
        fields = [Field(v.name, v.row_shape(place), v.before_block(place)) for v in own]
        edge = 0 if place.last else setting.batch_size * math.prod(place.shapes[-1])
        plans.append(
            StagePlan(
                stage=k,
                first_block=blocks[0].name,
                last_block=blocks[-1].name,
                blocks=len(blocks),
                params=sum(block.params for block in blocks),
                flops=sum(block.flops for block in blocks),
                share=share,
                in_shape=place.shapes[0],
                out_shape=place.shapes[-1],
                store_bytes=generation_bytes(fields, setting.epoch_samples, setting.store_dtype),
                row_bytes=_WIDE_BYTES * sum(math.prod(field.shape) for field in fields),
                edge_bytes=edge * setting.precision.itemsize,
            )
        )
    return plans


def _check_cells(setting: Setting, cuts: Sequence[int]) -> None:
    """Refuse (ConfigError) variables of cells of pixels that were asked for where no boundary has pixels."""
    options = [option.name for option in setting.declared.options if option.cells]
    asked = [name for name in options if setting.config.origins.get(f"method.{name}", "default") != "default"]
    if not asked:
        return
    places = _places(setting, cuts)
    owned = [(v, place) for place in places for v in own_variables(setting.method, place) if v.factor > 1]
    if owned and all(v.row_shape(place) == replace(v, factor=1).row_shape(place) for v, place in owned):
        shapes = ", ".join("x".join(map(str, place.shapes[-1])) for place in places[:-1])
        raise ConfigError(
            f"method.{asked[0]} = {owned[0][0].factor} stores a value for each {owned[0][0].factor} x "
            f"{owned[0][0].factor} pixels of feature maps (C, H, W), and no cut of this network has one (shapes: "
            f"{shapes}); set it to 1"
        )


def auxiliary_gib(setting: Setting, cuts: Sequence[int]) -> dict[str, float]:
    """GiB of the float32 variables of the methods that are compared; options that change nothing here are left out."""
    there, table = _places(setting, cuts), dict[str, float]()
    for declared in declared_methods().values():
        sizes = dict[int, str]()
        for options in declared.compared:
            method = made(declared, options)
            values = sum(math.prod(v.row_shape(place)) for place in there for v in own_variables(method, place))
            sizes.setdefault(values, ", ".join([declared.name, *(f"{key} {value}" for key, value in options.items())]))
        table |= {words: _WIDE_BYTES * values * setting.epoch_samples / 2**30 for values, words in sizes.items()}
    return table


def _places(setting: Setting, cuts: Sequence[int]) -> list[Place]:
    return [
        Place(k == 0, k == len(cuts), tuple(setting.shapes[part.start : part.stop + 1]), part.start)
        for k, part in enumerate(ranges(cuts, len(setting.blocks)))
    ]


def footprints(setting: Setting, stages: Sequence[StagePlan]) -> list[dict[str, int]]:
    """Bytes of the rank of each stage, by what they are for, and at its "peak".

    "weights" are parameters, their gradients, what the optimizer and an average keep of each; "activations" those of
    everything in flight in the hungrier kind of epoch; "rows" mini-batches of auxiliary rows being read, used and
    written, and neighbours' copies; "store" a store in memory; "images" the data set, where a stage sees it;
    "checkpoint" the stage's file, which is made in memory between steps, when activations and rows are gone.
    """
    kept, states = iter(setting.kept), _states(setting)
    return [_footprint(setting, stage, len(stages), sum(islice(kept, stage.blocks)), states) for stage in stages]


def _states(setting: Setting) -> int:
    """How many numbers of each parameter are kept: by the optimizer, the average of the weights, and gradients that
    wait for a step."""
    weight = nn.Parameter(torch.zeros(8, 8))
    weight.grad = torch.ones_like(weight)
    optimizer = setting.optimizer([weight])
    optimizer.step()
    kept = optimizer.state.get(weight, {}).values()
    states = sum(isinstance(value, torch.Tensor) and value.numel() == weight.numel() for value in kept)
    return states + (setting.config.optim.ema > 0) + (setting.config.optim.accumulate > 1)


def _footprint(setting: Setting, stage: StagePlan, ranks: int, sample: int, states: int) -> dict[str, int]:
    """That of a stage; `sample` is what autograd keeps of one sample in all its blocks."""
    schedule, method, size = setting.config.schedule, setting.method, max(setting.batch_sizes)
    ends = [_WIDE_BYTES * math.prod(shape) for shape in (stage.in_shape, stage.out_shape)]
    pieces = in_flight(setting.exact.order, stage.stage, ranks, schedule.microbatches)
    kept = ends[0] if schedule.recompute else sample
    works = timetable(setting.exact.order, stage.stage, ranks, schedule.microbatches)
    late = waiting(stage.stage, works, schedule.waiting) if setting.exact.defers(ranks) else 0
    late = min(late, schedule.microbatches - pieces)  # gradients take the place of activations that autograd lets go
    exact = -(-size // schedule.microbatches) * ((1 + late) * sample + (pieces - 1) * kept)
    held = 1 + round(flights(method, stage.stage, ranks) * method.microbatches)  # pieces at once
    at_once = math.ceil(size * (held / method.microbatches)) * sample if setting.parallel else 0
    rows = stage.row_bytes * size
    images = setting.train_size + setting.config.data.validation + setting.test_size
    sees = stage.stage in (0, ranks - 1) or method.facts.images
    found = {
        "weights": _WIDE_BYTES * (2 + states) * stage.params,
        "activations": max(exact, at_once),
        "rows": rows * (1 + AHEAD + BEHIND) + 2 * size * sum(ends) if ranks > 1 else rows,
        "store": stage.store_bytes if setting.parallel and setting.config.store.kind == "memory" else 0,
        "images": images * setting.sample_bytes if sees else 0,
        "checkpoint": _WIDE_BYTES * (1 + states) * stage.params,
    }
    step = max(found["activations"] + found["rows"], found["checkpoint"])
    return found | {"peak": found["weights"] + found["store"] + found["images"] + step}
