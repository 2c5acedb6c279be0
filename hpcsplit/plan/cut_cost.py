"""What a cut costs: a parallel step's work on variables, messages and rows, measured for every possible boundary."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from hpcsplit.host.device import upload, wait_for
from hpcsplit.methods.contract import Batch, InFlight, Step, Talk, TrainingMethod, own_variables, sweeps
from hpcsplit.plan.profile import CutCost
from hpcsplit.plan.setting import Setting
from hpcsplit.stage.stage import Shape, Stage
from hpcsplit.store.store import Field, MemoryStore
from hpcsplit.terms.resample import cells
from hpcsplit.wire.message import body
from hpcsplit.wire.port import PREV, Recv, Send

REPEATS = 3


def time_cuts(setting: Setting, shapes: Sequence[Shape], device: torch.device) -> tuple[CutCost, ...]:
    """What a cut at a boundary of each of these shapes costs in a parallel step; () where epochs are all exact.

    About: what a stage between two others takes whose output is its input.
    """
    method = setting.method.at(0)
    if method.facts.full_batch or not setting.parallel:
        return ()
    known = {shape: _idle_stage(setting, method, shape, device) for shape in set(shapes)}
    return tuple(known[shape] for shape in shapes)


def _idle_stage(setting: Setting, method: TrainingMethod, shape: Shape, device: torch.device) -> CutCost:
    size, dtype = setting.timed_batch, setting.store_dtype
    stage = Stage(
        1,
        3,
        nn.Sequential(nn.Identity()),
        [shape, shape],
        torch.optim.SGD,
        device=device,
        dtype=setting.precision,
        channels_last=setting.config.run.channels_last,
        first_block=1,
        net_blocks=3,
    )
    own = own_variables(method, stage.place)
    store = MemoryStore([Field(v.name, v.row_shape(stage.place)) for v in own], size, dtype)
    ids, random = np.arange(size), torch.Generator().manual_seed(0)
    copies = {
        f"{side}_{v.name}": torch.rand(size, *cells(shape, v.factor), generator=random).to(device)
        for v in method.variables(stage.place)
        for side in ("next", "prev")
    }
    store.start([ids], read=False)
    store.write(0, {v.name: copies[f"next_{v.name}"] for v in own})
    store.finish(0)

    def one_step() -> tuple[float, float, float]:
        """Until the stage before it is first heard of, from then on, and in putting messages together."""
        spent, packing, part = [0.0, 0.0], 0.0, 1
        began = time.perf_counter()

        def lap(into: int) -> None:
            nonlocal began
            wait_for(device)
            spent[into] += time.perf_counter() - began
            began = time.perf_counter()

        store.start([ids])
        rows = {name: upload(t, device) for name, t in store.read(0).items()} | copies
        lap(1)
        for v in own:
            if v.copy_to is not None:
                body(rows[v.name].to(dtype))
        wait_for(device)
        packing += time.perf_counter() - began
        began = time.perf_counter()
        steps: list[Step | Talk] = [sweep(stage, rows, Batch(ids, size)) for sweep in sweeps(method)]
        if isinstance(method, InFlight):
            steps.append(method.drain(stage, goes_on=False))
        for verbs in steps:
            part, answer = 0, None
            with suppress(StopIteration):
                while True:
                    verb = verbs.send(answer)
                    lap(part)
                    answer = None
                    if isinstance(verb, Send):
                        body(verb.tensor)
                        wait_for(device)
                        packing += time.perf_counter() - began
                    else:
                        assert isinstance(verb, Recv)
                        answer = torch.zeros(verb.shape, device=device)
                        part = 1 if verb.side == PREV else part
                    began = time.perf_counter()
            lap(part)
        store.write(0, {v.name: copies[f"next_{v.name}"] for v in own})
        store.finish(0)
        lap(1)
        return spent[0], spent[1], packing

    rounds = [one_step() for _ in range(1 + REPEATS)][1:]
    before, behind, packing = (statistics.median(column) for column in zip(*rounds, strict=True))
    first = behind / max(len(own), 1)  # rows and steps of all variables are alike
    return CutCost(before, first, behind - first, packing)
