"""What a cut costs: a parallel step's work on variables, messages and rows, measured for every possible boundary."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from hpcsplit.assemble import batch_size, build_method, make_phases, precision_of
from hpcsplit.boundary.store import Field, MemoryStore
from hpcsplit.config import Config
from hpcsplit.engine.job import FORWARD_ROWS
from hpcsplit.methods.contract import Batch, TrainingMethod, own_variables
from hpcsplit.split.stage import Shape, Stage
from hpcsplit.terms.resample import cells
from hpcsplit.wire.message import body
from hpcsplit.wire.port import Recv, Send

REPEATS = 3


def join_seconds(config: Config, shapes: Sequence[Shape]) -> tuple[float, ...]:
    """What a cut at a boundary of each of these shapes costs each of its two stages in a parallel step, in seconds.

    About: half of what a stage between two others takes whose output is its input.  () where epochs are all exact.
    """
    method = build_method(config).at(0)
    if method.full_batch or "parallel" not in make_phases(config):
        return ()
    halves = config.method.options.get("downsample") == 2  # no cut can be where there are no pixels
    known = {s: 0.0 if halves and len(s) != 3 else _idle_stage_seconds(config, method, s) / 2 for s in set(shapes)}
    return tuple(known[shape] for shape in shapes)


def _idle_stage_seconds(config: Config, method: TrainingMethod, shape: Shape) -> float:
    size, dtype = batch_size(config, most=FORWARD_ROWS), getattr(torch, config.store.dtype)
    stage = Stage(
        1,
        3,
        nn.Sequential(nn.Identity()),
        [shape, shape],
        torch.optim.SGD,
        dtype=precision_of(config),
        channels_last=config.run.channels_last,
        first_block=1,
        net_blocks=3,
    )
    own = own_variables(method, stage.place)
    store = MemoryStore([Field(v.name, v.row_shape(stage.place)) for v in own], size, dtype)
    ids, random = np.arange(size), torch.Generator().manual_seed(0)
    copies = {
        f"{side}_{v.name}": torch.rand(size, *cells(shape, v.factor), generator=random)
        for v in method.variables(stage.place)
        for side in ("next", "prev")
    }
    store.start([ids], read=False)
    store.write(0, {v.name: copies[f"next_{v.name}"] for v in own})
    store.finish(0)

    def one_step() -> float:
        began = time.perf_counter()
        store.start([ids])
        rows = store.read(0) | copies
        sweeps = [sweep(stage, rows, Batch(ids, size)) for sweep in method.sweeps()]
        for verbs in (*sweeps, method.drain(stage, goes_on=False)):
            answer = None
            with suppress(StopIteration):
                while True:
                    verb = verbs.send(answer)
                    if isinstance(verb, Send):
                        body(verb.tensor)
                    answer = torch.zeros(verb.shape) if isinstance(verb, Recv) else None
        store.write(0, {v.name: copies[f"next_{v.name}"] for v in own})
        store.finish(0)
        return time.perf_counter() - began

    return statistics.median([one_step() for _ in range(1 + REPEATS)][1:])
