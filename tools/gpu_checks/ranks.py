"""Checks between ranks that share the GPU: messages whose copies end late, and steps of hpcsplit's own engine."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch

from hpcsplit.engine.forward import refresh
from hpcsplit.host.device import use
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Phase, Refresh, Train
from hpcsplit.wire.port import NEXT, PREV, Recv, Send, Verb
from hpcsplit.wire.timing import one_way_times
from tools.gpu_checks.here import epoch, whole
from tools.gpu_checks.setting import Finding, Setting, configuration
from tools.timing.peers.ours import close, jobs_of, turn

_SHAPES = [(128, 16, 32, 32), (3,), (128, 64, 8, 8), (5, 7), (1, 1), (64, 32, 16, 16)]
_TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
_LATE_CYCLES = 20_000_000  # about 10 ms

DELAYED = {"name": "delayed", "epoch_end": "run"}
WAYS: dict[str, tuple[Phase, dict[str, dict[str, Any]]]] = {  # of two ranks
    "exact": ("serial", {}),
    "penalty": ("parallel", {"method": {"name": "penalty"}}),
    "delayed": ("parallel", {"method": DELAYED}),
    "al": ("parallel", {"method": {"name": "al"}}),
    "delayed, corrected": ("parallel", {"method": {**DELAYED, "predict": True, "spike": True, "lr_anneal": 1000}}),
    "penalty, store in files": ("parallel", {"method": {"name": "penalty"}, "store": {"kind": "hdf5"}}),
    "exact in 4 micro-batches": ("serial", {"schedule": {"microbatches": 4}}),
}


def messages(setting: Setting) -> Iterator[Finding]:
    """Every type and memory format arrives as it was sent, though the device is still busy when it leaves and the
    sender overwrites it at once; seconds of a large one, there and back."""
    wire = _wire(setting)
    rank, device = wire.rank, setting.device

    def made(number: int) -> torch.Tensor:
        shape, dtype = _SHAPES[number % len(_SHAPES)], _TYPES[number % len(_TYPES)]
        x = (torch.arange(math.prod(shape), device=device).reshape(shape) % 100 + number % 27).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and number % 2 else x

    def exchange() -> Generator[Verb, Any, int]:
        wrong = 0
        for number in range(10 if setting.tiny else 100):
            expected = made(number)
            side = NEXT if rank == 0 else PREV
            if rank:
                got = yield Recv(side, "x", tuple(expected.shape), expected.dtype, number)
            leaving = expected.clone()
            if setting.cuda:
                torch.cuda._sleep(_LATE_CYCLES)  # the copy to the host begins behind it
            yield Send(side, "y" if rank else "x", leaving, number)
            leaving.zero_()
            if not rank:
                got = yield Recv(side, "y", tuple(expected.shape), expected.dtype, number)
            wrong += not torch.equal(got, expected)
        return wrong

    large, side = torch.randn(_SHAPES[0], device=device), PREV if rank else NEXT
    wrong = wire.share(wire.run([exchange()])[0])
    trips = one_way_times(side, large, 5 if setting.tiny else 30, measures=rank == 0)
    (times,) = wire.run([trips])
    wire.close()
    if rank == 0:
        yield {"ok": not any(wrong), "wrong": wrong, "us_8mb": round(1e6 * statistics.median(times[2:]), 1)}


def alone(setting: Setting) -> Iterator[Finding]:
    """Exact steps of one rank: to be compared with the loops of torch alone."""
    for network, precision in setting.networks:
        torch.backends.cudnn.benchmark = True
        steps, turns = _sizes(setting)
        config = configuration(setting, network, 1, steps=steps, run={"precision": precision})
        job = whole(setting, config)
        epoch(job, "serial", 0)
        seconds = setting.seconds(lambda job=job: epoch(job, "serial", 1), times=turns)  # type: ignore[misc]
        what = {"network": network, "precision": precision, "way": "exact, 1 rank"}
        yield {"ok": True, **what, "ms": round(1e3 * seconds / steps, 3)}


def together(setting: Setting) -> Iterator[Finding]:
    """Steps of two ranks that share the device."""
    wire = _wire(setting)
    mine = sorted(os.sched_getaffinity(0))
    half = max(1, len(mine) // 2)
    os.sched_setaffinity(0, set(mine[wire.rank * half : (wire.rank + 1) * half] or mine))
    for number, (network, precision) in enumerate(setting.networks):
        for way in WAYS if number == 0 else list(WAYS)[:3]:
            enough = min(wire.share(setting.left_s)) > 12
            if not enough:
                break
            found = _together(setting, wire, network, precision, way)
            if wire.rank == 0:
                yield found
    wire.close()


def _together(setting: Setting, wire: Any, network: str, precision: str, way: str) -> Finding:
    phase, sections = WAYS[way]
    torch.backends.cudnn.benchmark = True
    steps, turns = _sizes(setting)
    config = configuration(setting, network, 2, steps=steps, run={"precision": precision}, **sections)
    place = wire.share(tempfile.mkdtemp() if wire.rank == 0 else None)[0]
    (job,) = jobs_of(wire, config, RunDir(Path(place) / "run"), setting.device)

    def program() -> Generator[Verb, Any, dict[str, float]]:
        if phase == "parallel" and job.has_variables:
            yield from refresh(job, Refresh(0))
        costs = []
        for number in range(2 + turns):
            costs.append((yield from turn(job, setting.device, [Train(0, phase, number, goes_on=True)])))
        return {name: statistics.median(each[name] for each in costs[2:]) for name in costs[0]}

    ranks = wire.share(wire.run([program()])[0])
    close([job])
    names = {"ms": "seconds", "cpu_ms": "cpu_s", "exposed_ms": "exposed_s", "imbalance_ms": "imbalance_s"}
    times = {name: [round(1e3 * costs[key], 3) for costs in ranks] for name, key in names.items()}
    return {"ok": True, "network": network, "precision": precision, "way": f"{way}, 2 ranks", **times}


def _sizes(setting: Setting) -> tuple[int, int]:
    """Steps of an epoch, epochs."""
    return (3, 2) if setting.tiny else (25, 5)


def _wire(setting: Setting) -> Any:
    from hpcsplit.wire.mpi import Wire

    wire = Wire()
    wire.device = use(setting.device)
    return wire
