"""hpcsplit itself on two ranks: the epochs of its engine over MPI with its store, so many steps long."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hpcsplit.assemble import Prepared, make_job
from hpcsplit.config import load
from hpcsplit.engine.epochs import train_epoch
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.methods.contract import Tally
from hpcsplit.prepare import prepare
from hpcsplit.rundir import RunDir
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.wire.mpi import Wire
from hpcsplit.wire.port import Meter, Share, Verb
from tools.benchmarks.peers.common import arguments
from tools.benchmarks.turns import Player

WARM_UP_EPOCHS = 1
ACTIONS = {
    "parallel": lambda epoch: Train(epoch, "parallel", epoch),
    "exact": lambda epoch: Train(epoch, "serial", 0),
}


def main() -> None:
    args = arguments()
    wire = Wire()
    player = Player(args.turns, args.first, wire.world.rank)
    torch.set_num_threads(1)
    config, run_dir, cpu = load(args.config), RunDir(Path(args.turns) / "run"), torch.device("cpu")
    prepared = prepare(config, run_dir, wire.world.size, cpu).as_dict() if wire.world.rank == 0 else None
    prepared = Prepared.from_dict(wire.share(prepared)[0])
    job = make_job(config, prepared, run_dir, wire.world.rank, wire.world.size, cpu)
    job.stage.between_blocks = wire.progress
    wire.run(program(job, player, args.kind))
    if job.store:
        job.store.close()
    wire.close()


def program(job: Job, player: Player, kind: str) -> Generator[Verb, Any, None]:
    """Warm up; then one epoch a turn, which begins on all ranks at once."""
    if kind == "parallel":
        yield from refresh(job, Refresh(0), None)
    for epoch in range(WARM_UP_EPOCHS):
        yield from train_epoch(job, ACTIONS[kind](epoch), Tally())
    steps = len(job.epoch_batches(0))
    for number in player.turns():
        yield Share(None)
        before, io, began = asdict((yield Meter())), _io(job), time.perf_counter()
        yield from train_epoch(job, ACTIONS[kind](WARM_UP_EPOCHS + number), Tally())
        seconds, after = time.perf_counter() - began, asdict((yield Meter()))
        waits = {name: (after[name] - before[name]) / steps for name in ("exposed_s", "imbalance_s")}
        player.note(number, seconds / steps, io_s=(_io(job) - io) / steps, **waits)


def _io(job: Job) -> float:
    return job.store.io_wait_s if job.store else 0.0


if __name__ == "__main__":
    main()
