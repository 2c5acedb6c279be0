"""What a configuration will need, from the network's shapes alone: cuts, parameters, auxiliary bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpcsplit.errors import ConfigError
from hpcsplit.methods.contract import own_variables
from hpcsplit.plan.setting import Setting
from hpcsplit.schedule.actions import Phase
from hpcsplit.stage.cuts import ranges, stage_shares
from hpcsplit.stage.stage import Place, Shape
from hpcsplit.store.store import Field, generation_bytes
from hpcsplit.terms.resample import cells


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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_stages(setting: Setting, cuts: Sequence[int], costs: Sequence[float]) -> list[StagePlan]:
    """The plan of every stage; `costs` are the blocks' costs in any unit.

    Raises ConfigError where the method cannot keep variables at a boundary.
    """
    blocks, shapes, method = setting.blocks, setting.shapes, setting.method
    for k, cut in enumerate(cuts, start=1):
        if refusal := method.refuses(k, shapes[cut]):
            raise ConfigError(refusal)
    parts = ranges(cuts, len(blocks))
    plans = []
    for k, (part, share) in enumerate(zip(parts, stage_shares(costs, cuts), strict=True)):
        last = k + 1 == len(parts)
        place = Place(k == 0, last, tuple(shapes[part.start : part.stop + 1]), part.start)
        own = own_variables(method, place)
        fields = [Field(v.name, v.row_shape(place), v.before_block(place)) for v in own]
        plans.append(
            StagePlan(
                stage=k,
                first_block=blocks[part.start].name,
                last_block=blocks[part.stop - 1].name,
                blocks=len(part),
                params=sum(block.params for block in blocks[part.start : part.stop]),
                flops=sum(block.flops for block in blocks[part.start : part.stop]),
                share=share,
                in_shape=place.shapes[0],
                out_shape=place.shapes[-1],
                store_bytes=generation_bytes(fields, setting.epoch_samples, setting.store_dtype) if fields else 0,
                row_bytes=4 * sum(math.prod(field.shape) for field in fields),
                edge_bytes=0 if last else setting.batch_size * math.prod(place.shapes[-1]) * setting.precision.itemsize,
            )
        )
    return plans


def auxiliary_gib(edges: Sequence[Shape], samples: int) -> dict[str, float]:
    """GiB of float32 auxiliary variables of the DS-SPH methods at the inner boundaries (paper, Tables 1 and 2)."""
    inner = edges[1:-1]
    full = sum(math.prod(shape) for shape in inner) * samples * 4 / 2**30
    table = {"penalty": full, "al": 2 * full}
    if all(len(shape) == 3 for shape in inner):
        half = sum(math.prod(cells(shape, 2)) for shape in inner) * samples * 4 / 2**30
        table |= {"penalty, downsample 2": half, "al, downsample 2": 2 * half}
    return table


def hybrid_speed_up(phases: Sequence[Phase], largest_share: float, pipelined: float = 1.0) -> float:
    """Balance bound of the whole schedule over one core: no message, refresh or evaluation is charged.

    Args:
        largest_share: the share of the cost of the most expensive stage; parallel epochs gain 1 / share.
        pipelined: the gain of an exact epoch over one core (1 without micro-batches).
    """
    if not phases:
        return 1.0
    parallel = sum(phase == "parallel" for phase in phases)
    return len(phases) / (parallel * largest_share + (len(phases) - parallel) / pipelined)
