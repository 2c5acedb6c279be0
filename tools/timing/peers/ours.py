"""hpcsplit itself on two ranks: the epochs of its engine over MPI with its store, so many steps long."""

from __future__ import annotations

from tools.timing.peers.common import arguments, configuration, wait_for_device  # isort: skip; sets the allocator

import os
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import torch

from hpcsplit.assemble import Around, make_jobs
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.host.memory import give_back
from hpcsplit.methods.contract import Tally
from hpcsplit.plan.prepare import Prepared, prepare
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.wire.mpi import Wire
from hpcsplit.wire.port import Meter, Share, Verb
from tools.soaking.watching import sample
from tools.timing.turns import Player

CYCLE = {
    "parallel": (Train(0, "parallel", 0, goes_on=True),),
    "exact": (Train(0, "serial", 0),),
    "hybrid": (Train(0, "serial", 0), Refresh(0), *(Train(0, "parallel", 0, goes_on=True) for _ in range(4))),
}


def main() -> None:
    args = arguments()
    wire = Wire()
    player = Player(args.turns, args.first, wire.rank)
    torch.set_num_threads(1)
    setting, run_dir = Setting(configuration(args)), RunDir(Path(args.turns) / "run")
    device = setting.device(wire.local_rank)
    prepared = msgspec.to_builtins(prepare(setting, run_dir, wire.size, device)) if wire.rank == 0 else None
    prepared = msgspec.convert(wire.share(prepared)[0], Prepared)
    (job,) = make_jobs(setting, prepared, run_dir, [wire.rank], device, Around(between_blocks=wire.progress))
    give_back()
    wire.device = device
    wire.run([program(job, player, args.kind)])
    if job.store:
        job.store.close()
    wire.close()


def program(job: Job, player: Player, kind: str) -> Generator[Verb, Any, None]:
    """Warm up; then one cycle a turn, which begins on all ranks at once."""
    if kind == "parallel" and job.has_variables:
        yield from refresh(job, Refresh(0), None)
    epochs = count()
    yield from cycle(job, kind, epochs)
    for number in player.turns():
        yield Share(None)
        wait_for_device()
        before, io, cpu, began = asdict((yield Meter())), _io(job), time.process_time(), time.perf_counter()
        steps, refresh_s = yield from cycle(job, kind, epochs)
        seconds, after = time.perf_counter() - began, asdict((yield Meter()))
        waits = {name: (after[name] - before[name]) / steps for name in ("exposed_s", "imbalance_s")}
        if refresh_s:
            waits["refresh_s"] = refresh_s / steps
        waits["cpu_s"] = (time.process_time() - cpu) / steps
        player.note(number, seconds / steps, io_s=(_io(job) - io) / steps, **waits, **memory(job))


def cycle(job: Job, kind: str, epochs: Iterator[int]) -> Generator[Verb, Any, tuple[int, float]]:
    """The actions of one turn; its steps, and the seconds of its refresh."""
    steps, refresh_s = 0, 0.0
    for action in CYCLE[kind]:
        if isinstance(action, Refresh):
            began = time.perf_counter()
            yield from refresh(job, action, None)
            refresh_s = time.perf_counter() - began
        else:
            yield from train_epoch(job, replace(action, epoch=next(epochs)), Tally())
            steps += len(job.epoch_batches(0))
    wait_for_device()
    return steps, refresh_s


def memory(job: Job) -> dict[str, int]:
    """Bytes that the process has for itself alone, and those of the samples among them."""
    now = sample(os.getpid())
    assert now is not None
    data = [value.nbytes for value in vars(job.train).values() if isinstance(value, torch.Tensor)]
    return {"rss_anon": 1024 * now.anonymous, "data_bytes": sum(data)}


def _io(job: Job) -> float:
    return job.store.io_wait_s if job.store else 0.0


if __name__ == "__main__":
    main()
