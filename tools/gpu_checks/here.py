"""Checks in one process: what the machine is, what its smallest acts cost, and training loops of torch alone."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import mpi4py
import numpy as np
import torch

from hpcsplit.checkpoint.state import load_stage, stage_tensors
from hpcsplit.config import Config
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.job import Job
from hpcsplit.host.device import upload, wait_for
from hpcsplit.methods.contract import Tally
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Phase, Train
from hpcsplit.wire import lockstep
from tools.gpu_checks.setting import Finding, Setting, configuration, cores
from tools.timing.peers.ours import jobs_of
from tools.timing.peers.torch_alone import Problem

_MB = 1 << 20
LOOPS = ("eager", "benchmark", "graph")


def environment(setting: Setting) -> Iterator[Finding]:
    """Versions and hardware, and the switches of torch that change numbers or speed."""
    found: Finding = {
        "ok": True,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "mpi4py": mpi4py.__version__,
        "h5py": h5py.__version__,
        "cores": cores(),
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
    device, size = setting.device, 4 * _MB
    x, one, ids = torch.zeros(64, device=device), torch.ones(1, device=device), np.arange(128)
    pageable = torch.empty(size, dtype=torch.uint8)
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=setting.cuda)
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
        for way in LOOPS:
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
    more = {} if way != "graph" else {"cache_enabled": False}
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
