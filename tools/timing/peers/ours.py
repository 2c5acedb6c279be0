"""hpcsplit itself: the epochs of its engine over MPI with its store, so many steps long; for others, the jobs of a
configuration and what a turn costs."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import torch

from hpcsplit.assemble import Around, make_jobs
from hpcsplit.config import Config
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.host.device import wait_for
from hpcsplit.host.memory import give_back
from hpcsplit.methods.contract import Tally
from hpcsplit.plan.prepare import Prepared, prepare
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.wire.port import Meter, Share, Verb, World
from tools.campaigns.soaking import sample
from tools.timing.turns import Player, told

PARALLEL = Train(0, "parallel", 0, goes_on=True)
CYCLE: dict[str, tuple[Train | Refresh, ...]] = {
    "parallel": (PARALLEL,),
    "exact": (Train(0, "serial", 0),),
    "hybrid": (Train(0, "serial", 0), Refresh(0), *[PARALLEL] * 4),
}


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


def main() -> None:
    from hpcsplit.wire.mpi import Wire  # starts MPI

    kind, config, place, first = told()
    wire = Wire()
    player = Player(place, first + wire.rank)
    torch.set_num_threads(1)
    device = Setting(config).device(wire.local_rank)
    jobs = jobs_of(wire, config, RunDir(Path(place) / "run"), device)
    wire.idle = jobs[0].stage.deferred.one
    give_back()
    wire.run([program(job, player, kind, device) for job in jobs])
    close(jobs)
    wire.close()


def program(job: Job, player: Player, kind: str, device: torch.device) -> Generator[Verb, Any, None]:
    """Warm up; then one cycle a turn."""
    if kind == "parallel" and job.has_variables:
        yield from refresh(job, Refresh(0), None)
    epochs = count()
    yield from turn(job, device, cycle(kind, epochs))
    for number in player.turns():
        costs = yield from turn(job, device, cycle(kind, epochs))
        player.note(number, **costs, **memory(job))


def cycle(kind: str, epochs: Iterator[int]) -> Iterator[Train | Refresh]:
    """The actions of one turn."""
    for action in CYCLE[kind]:
        yield replace(action, epoch=next(epochs)) if isinstance(action, Train) else action


def memory(job: Job) -> dict[str, int]:
    """Bytes that the process has for itself alone, and those of the samples among them."""
    now = sample(os.getpid())
    assert now is not None
    data = [value.nbytes for value in vars(job.train).values() if isinstance(value, torch.Tensor)]
    return {"rss_anon": 1024 * now.anonymous, "data_bytes": sum(data)}


if __name__ == "__main__":
    main()
