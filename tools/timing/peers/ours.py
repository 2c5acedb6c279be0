"""hpcsplit itself on two ranks: the epochs of its engine over MPI with its store, so many steps long."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.host.memory import give_back
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.wire.mpi import Wire
from hpcsplit.wire.port import Verb
from tools.campaigns.soaking import sample
from tools.timing.engine import close, jobs_of, turn
from tools.timing.turns import Player, told

PARALLEL = Train(0, "parallel", 0, goes_on=True)
CYCLE: dict[str, tuple[Train | Refresh, ...]] = {
    "parallel": (PARALLEL,),
    "exact": (Train(0, "serial", 0),),
    "hybrid": (Train(0, "serial", 0), Refresh(0), *[PARALLEL] * 4),
}


def main() -> None:
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
