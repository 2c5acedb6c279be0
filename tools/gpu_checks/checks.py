"""What every check is told, and checks in processes of their own: what the machine is, what its smallest acts cost,
training loops of torch alone, steps of hpcsplit's own engine, and messages, whose copies end late, between ranks that
share the GPU."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import mpi4py
import numpy as np
import torch

from hpcsplit.checkpoint.state import load_stage, stage_tensors
from hpcsplit.config import Config, resolve
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.host.device import upload, use, wait_for
from hpcsplit.methods.contract import Tally
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Phase, Refresh, Train
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import NEXT, PREV, Recv, Send, Verb
from hpcsplit.wire.timing import one_way_times
from tools.program import Sections, merged, text
from tools.timing.engine import close, jobs_of, turn
from tools.timing.peers.common import Problem

Finding = dict[str, Any]  # with "ok": True, False, or None for what could not be asked here
Check = Callable[["Setting"], Iterator[Finding]]
CUTS = {"resnet8": 2, "resnet20": 5, "resnet56": 15, "resnet110": 28}  # into two stages of about the same work

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


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        tiny: a dry run: smallest networks, a few steps.
        data: a folder with CIFAR-10 as torchvision lays it out, or None.
        until: when the check has to have ended, in s since 1970.
    """

    device: torch.device
    tiny: bool
    out: Path
    data: Path | None
    until: float

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def batch(self) -> int:
        return 8 if self.tiny else 128

    @property
    def networks(self) -> list[tuple[str, str]]:
        """(network, precision), the most important first."""
        large = [("resnet110", "float32"), ("resnet110", "bfloat16"), ("resnet20", "float32")]
        return [("resnet8", "float32")] if self.tiny else large

    @property
    def sizes(self) -> tuple[int, int]:
        """Steps of an epoch, epochs."""
        return (3, 2) if self.tiny else (25, 5)

    @property
    def left_s(self) -> float:
        return self.until - time.time()

    def seconds(self, act: Callable[[], Any], times: int = 20, inner: int = 1) -> float:
        """Median of so many turns of `inner` calls each, for one call, after a turn that does not count."""
        found = []
        for _ in range(1 + (2 if self.tiny else times)):
            wait_for(self.device)
            began = time.perf_counter()
            for _ in range(inner):
                act()
            wait_for(self.device)
            found.append((time.perf_counter() - began) / inner)
        return statistics.median(found[1:])


def small(network: str, stages: int, device: torch.device | str, **settings: dict[str, Any]) -> Sections:
    """The settings of a run on random images."""
    base: Sections = {
        "data": {"name": "fake", "limit_test": 64},
        "model": {"name": network},
        "split": {"cuts": [CUTS[network]] if stages == 2 else []},
        "run": {"threads": 1, "baseline": False, "device": torch.device(device).type},
    }
    return merged(base, settings)


def configuration(setting: Setting, network: str, stages: int, *, steps: int, **settings: dict[str, Any]) -> Config:
    """A run in memory whose epoch has so many steps, parallel ones if the method has any."""
    base = small(
        network,
        stages,
        setting.device,
        data={"limit_train": setting.batch * steps, "batch_size": setting.batch, "augment": True},
        method={"name": "backprop"},
        schedule={"epochs": 1000, "ratio": "0:1", "warmup": 0},
        store={"kind": "memory"},
    )
    return resolve(merged(base, settings), (), stem="gpu", source="tools/gpu")


def records(folder: Path) -> list[dict[str, Any]]:
    """What a run has written down of its epochs."""
    path = folder / "records.jsonl"
    return [json.loads(line) for line in text(path).splitlines()] if path.exists() else []


def environment(setting: Setting) -> Iterator[Finding]:
    """Versions and hardware, and the switches of torch that change numbers or speed."""
    found: Finding = {
        "ok": True,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "mpi4py": mpi4py.__version__,
        "h5py": h5py.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }
    if setting.cuda:
        properties = torch.cuda.get_device_properties(setting.device)
        found |= {
            "gpu": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_products": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }
    yield found


def costs(setting: Setting) -> Iterator[Finding]:
    """Microseconds of what everything else is made of."""
    device, size = setting.device, 4 << 20
    x, one, ids = torch.zeros(64, device=device), torch.ones(1, device=device), np.arange(128)
    pageable, pinned = (torch.empty(size, dtype=torch.uint8, pin_memory=pin) for pin in (False, setting.cuda))
    there = torch.empty(size, dtype=torch.uint8, device=device)
    acts: dict[str, tuple[Callable[[], Any], int]] = {
        "launch": (lambda: x.add_(1), 500),
        "read a value": (lambda: float(one), 10),
        "upload 128 ids": (lambda: upload(ids, device), 100),
        "pinned 4 MB there": (lambda: there.copy_(pinned, non_blocking=True), 1),
        "pinned 4 MB back": (lambda: pinned.copy_(there, non_blocking=True), 1),
        "pageable 4 MB there": (lambda: there.copy_(pageable), 1),
        "pageable 4 MB back": (lambda: pageable.copy_(there), 1),
    }
    yield {"ok": True, "us": {name: round(1e6 * setting.seconds(act, inner=n), 2) for name, (act, n) in acts.items()}}


def optimizers(setting: Setting) -> Iterator[Finding]:
    """A stage's optimizer takes a step after it was loaded from what a checkpoint keeps."""
    for name in ("sgd", "adam", "adamw"):
        config = configuration(setting, "resnet8", 1, steps=2, optim={"name": name, "lr": 0.001})
        job = whole(setting, config)
        epoch(job, "serial", 0)
        load_stage(job.stage, stage_tensors(job.stage))
        epoch(job, "serial", 1)
        yield {"ok": job.stage.finite(), "optimizer": name}


def loops(setting: Setting) -> Iterator[Finding]:
    """A training loop of torch alone: as it comes, with cuDNN's choice of kernels, as a captured graph."""
    for network, precision in setting.networks:
        for way in ("eager", "benchmark", "graph"):
            what = {"network": network, "precision": precision, "way": way}
            if way == "graph" and not setting.cuda:
                yield {"ok": None, **what, "why": "graphs are captured on a GPU only"}
            else:
                yield {"ok": True, **what, **_loop(setting, network, precision, way)}


def _loop(setting: Setting, network: str, precision: str, way: str) -> Finding:
    device = setting.device
    config = configuration(setting, network, 1, steps=1, run={"precision": precision})
    torch.backends.cudnn.benchmark = way != "eager"
    problem = Problem(config, device.index or 0)
    more = {"cache_enabled": False} if way == "graph" else {}
    step = problem.trainer(problem.net, problem.images, problem.labels, **more)
    began = time.perf_counter()
    step()
    wait_for(device)
    first = time.perf_counter() - began
    act = _captured(step) if way == "graph" else step
    seconds = setting.seconds(act, times=15, inner=1 if setting.tiny else 5)
    return {"ms": round(1e3 * seconds, 3), "first_s": round(first, 2)}


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def whole(setting: Setting, config: Config) -> Job:
    """The job of a stage that is the whole network."""
    (job,) = jobs_of(lockstep.Alone(1), config, RunDir(Path(tempfile.mkdtemp()) / "run"), setting.device)
    return job


def epoch(job: Job, phase: Phase, number: int) -> None:
    """One epoch of a stage that is the whole network."""
    lockstep.run([train_epoch(job, Train(number, phase, 0, goes_on=True), Tally())])


def messages(setting: Setting) -> Iterator[Finding]:
    """Every type and memory format arrives as it was sent, though the device is still busy when it leaves and the
    sender overwrites it at once; seconds of a large one, there and back."""
    wire = _wire(setting)
    rank, device = wire.rank, setting.device
    side = PREV if rank else NEXT

    def made(number: int) -> torch.Tensor:
        shape, dtype = _SHAPES[number % len(_SHAPES)], _TYPES[number % len(_TYPES)]
        x = (torch.arange(math.prod(shape), device=device).reshape(shape) % 100 + number % 27).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 and number % 2 else x

    def exchange() -> Generator[Verb, Any, int]:
        wrong = 0
        for number in range(10 if setting.tiny else 100):
            expected = made(number)
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

    large = torch.randn(_SHAPES[0], device=device)
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
        steps, turns = setting.sizes
        config = configuration(setting, network, 1, steps=steps, run={"precision": precision})
        job = whole(setting, config)
        epoch(job, "serial", 0)
        ms = 1e3 * setting.seconds(partial(epoch, job, "serial", 1), times=turns) / steps
        yield {"ok": True, "network": network, "precision": precision, "way": "exact, 1 rank", "ms": round(ms, 3)}


def together(setting: Setting) -> Iterator[Finding]:
    """Steps of two ranks that share the device."""
    wire = _wire(setting)
    mine = sorted(os.sched_getaffinity(0))
    half = max(1, len(mine) // 2)
    os.sched_setaffinity(0, set(mine[wire.rank * half : (wire.rank + 1) * half] or mine))
    for number, (network, precision) in enumerate(setting.networks):
        for way in WAYS if number == 0 else list(WAYS)[:3]:
            if min(wire.share(setting.left_s)) <= 12:
                break
            found = _together(setting, wire, network, precision, way)
            if wire.rank == 0:
                yield found
    wire.close()


def _together(setting: Setting, wire: Any, network: str, precision: str, way: str) -> Finding:
    phase, sections = WAYS[way]
    torch.backends.cudnn.benchmark = True
    steps, turns = setting.sizes
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


def _wire(setting: Setting) -> Any:
    from hpcsplit.wire.mpi import Wire

    wire = Wire()
    wire.device = use(setting.device)
    return wire
