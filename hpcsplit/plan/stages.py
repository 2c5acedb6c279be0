"""What a configuration will need, from the network's shapes alone: cuts, parameters, auxiliary bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpcsplit.config.declared import declared_methods
from hpcsplit.methods.contract import own_variables
from hpcsplit.plan.setting import Setting, made
from hpcsplit.stage.cuts import ranges, stage_shares
from hpcsplit.stage.stage import Place, Shape
from hpcsplit.store.store import Field, generation_bytes


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
    """The plan of every stage; `costs` are the blocks' costs in any unit."""
    method, there = setting.method, _places(setting, cuts)
    plans = []
    for k, (place, share) in enumerate(zip(there, stage_shares(costs, cuts), strict=True)):
        blocks = setting.blocks[place.first_block :][: len(place.shapes) - 1]
        own = own_variables(method, place)
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
                store_bytes=generation_bytes(fields, setting.epoch_samples, setting.store_dtype) if fields else 0,
                row_bytes=4 * sum(math.prod(field.shape) for field in fields),
                edge_bytes=edge * setting.precision.itemsize,
            )
        )
    return plans


def auxiliary_gib(setting: Setting, cuts: Sequence[int]) -> dict[str, float]:
    """GiB of the float32 variables of the methods that are compared; options that change nothing here are left out."""
    there, table = _places(setting, cuts), dict[str, int]()
    compared = [(method, options) for method in declared_methods().values() for options in method.compared]
    for declared, options in compared:
        method = made(declared, options)
        values = sum(math.prod(v.row_shape(place)) for place in there for v in own_variables(method, place))
        words = ", ".join([declared.name, *(f"{key} {value}" for key, value in options.items())])
        if values not in (known for word, known in table.items() if word.split(",")[0] == declared.name):
            table[words] = values
    return {words: 4 * values * setting.epoch_samples / 2**30 for words, values in table.items()}


def _places(setting: Setting, cuts: Sequence[int]) -> list[Place]:
    shapes, parts = setting.shapes, ranges(cuts, len(setting.blocks))
    return [
        Place(k == 0, k == len(cuts), tuple(shapes[part.start : part.stop + 1]), part.start)
        for k, part in enumerate(parts)
    ]
