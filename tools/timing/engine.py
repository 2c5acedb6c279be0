"""hpcsplit's own engine without its command line: the jobs of a configuration, and what a turn of epochs costs."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from dataclasses import asdict
from typing import Any

import msgspec
import torch

from hpcsplit.assemble import Around, make_jobs
from hpcsplit.config import Config
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.host.device import wait_for
from hpcsplit.methods.contract import Tally
from hpcsplit.plan.prepare import Prepared, prepare
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.wire.port import Meter, Share, Verb, World


def jobs_of(world: World, config: Config, run_dir: RunDir, device: torch.device) -> list[Job]:
    """The jobs of this process's stages."""
    setting, world.device = Setting(config), device
    found = msgspec.to_builtins(prepare(setting, run_dir, world.count, device)) if world.rank == 0 else None
    prepared = msgspec.convert(world.share(found)[0], Prepared)
    return make_jobs(setting, prepared, run_dir, world.stages, device, Around(between_blocks=world.progress))


def turn(job: Job, device: torch.device, actions: Iterable[Train | Refresh]) -> Generator[Verb, Any, dict[str, float]]:
    """Do the actions, which all ranks begin at once; the seconds that a step of them took, and of these its waits."""
    yield Share(None)
    wait_for(device)
    io_s = job.store.io_wait_s if job.store else 0.0
    before, cpu, began = asdict((yield Meter())), time.process_time(), time.perf_counter()
    steps, refresh_s = 0, 0.0
    for action in actions:
        if isinstance(action, Refresh):
            start = time.perf_counter()
            yield from refresh(job, action)
            refresh_s = time.perf_counter() - start
        else:
            yield from train_epoch(job, action, Tally())
            steps += len(job.epoch_batches(0))
    wait_for(device)
    found = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    found["io_s"] = job.store.io_wait_s - io_s if job.store else 0.0
    after = asdict((yield Meter()))
    found |= {name: after[name] - before[name] for name in ("exposed_s", "imbalance_s")}
    found |= {"refresh_s": refresh_s} if refresh_s else {}
    return {name: value / steps for name, value in found.items()}


def close(jobs: Iterable[Job]) -> None:
    for job in jobs:
        if job.store:
            job.store.close()
