"""Exact training with the whole network on every rank and a part of each mini-batch (torch's DistributedDataParallel):
a rival of the plane.  It leaves records, configuration and provenance like `hpcsplit train`.

    mpirun -n 2 python -m tools.experiments.data_parallel CONFIG [--section.key VALUE ...] --run-dir DIR
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from socket import gethostname

from hpcsplit.host.memory import keep_freed_memory

keep_freed_memory()  # before torch

import torch  # noqa: E402
from mpi4py import MPI  # noqa: E402  # to learn who is who; gradients go by torch.distributed
from torch import distributed  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from hpcsplit.assemble import make_jobs  # noqa: E402
from hpcsplit.config import Config, load  # noqa: E402
from hpcsplit.engine.evaluate import Scores, evaluate  # noqa: E402
from hpcsplit.engine.job import Job  # noqa: E402
from hpcsplit.errors import ConfigError  # noqa: E402
from hpcsplit.plan.prepare import Prepared  # noqa: E402
from hpcsplit.plan.setting import Setting  # noqa: E402
from hpcsplit.run.folder import RunDir  # noqa: E402
from hpcsplit.run.provenance import end, place  # noqa: E402
from hpcsplit.run.records import EpochRecord, Records  # noqa: E402
from hpcsplit.wire import lockstep  # noqa: E402


def train(config: Config, run_dir: RunDir, rank: int, ranks: int, device: torch.device) -> None:
    """All epochs, from the start: mini-batch, order, augmentation and learning rate are those of an exact epoch;
    BatchNorm normalises over each rank's part.  Rank 0 evaluates and writes."""
    (job,) = make_jobs(Setting(config), Prepared((), (), "", None), run_dir, [0], device)
    model = DistributedDataParallel(job.stage.blocks)
    records = Records(run_dir.records)
    if rank == 0:
        run_dir.create(config)
        records.truncate(0)
        run_dir.note_start(config, [place(gethostname(), device)] * ranks, MPI.Get_library_version(), ())
    for epoch in range(config.schedule.epochs):
        distributed.barrier()
        began = time.perf_counter()
        _epoch(job, model, epoch, rank, ranks)
        distributed.barrier()
        train_s = time.perf_counter() - began
        if rank == 0:
            scores = lockstep.run([evaluate(job, "serial", bn=False)])[0] if job.evaluated(epoch) else Scores()
            known = vars(scores) | {"train_s": train_s, "samples_per_s": job.train_size / train_s}
            records.append(EpochRecord(epoch, "serial", lr=job.learning_rate(epoch), **known))
    if rank == 0:
        end(run_dir.provenance, "done")
        run_dir.release()


def _epoch(job: Job, model: DistributedDataParallel, epoch: int, rank: int, ranks: int) -> None:
    stage = job.stage
    model.train()
    order = job.epoch_batches(epoch)
    for step, ids in enumerate(order):
        stage.set_lr(job.learning_rate(epoch, step, len(order)))
        mine = ids[rank::ranks]
        batch = job.batch(mine, epoch=epoch, augment=job.augments("serial"))
        stage.zero_grad()
        # DistributedDataParallel averages gradients over ranks; the parts of an odd mini-batch differ in size.
        (stage.loss(model(batch.x), batch.y).sum() * ranks / len(ids)).backward()
        stage.update()


def main(words: list[str]) -> None:
    config_file, *options = words
    pairs = {name.removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    folder = Path(pairs.pop("run-dir"))
    config = load(config_file, list(pairs.items()))
    if config.run.precision != "float32":
        raise ConfigError(f'run.precision = "{config.run.precision}": this program computes in float32; leave it out')
    torch.set_num_threads(config.run.threads or 1)
    rank, ranks = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    folder.mkdir(parents=True, exist_ok=True)
    meeting = Path(MPI.COMM_WORLD.bcast(str(folder.resolve() / f"meeting-{time.time_ns()}")))
    device = Setting(config).device(rank)
    backend = "nccl" if device.type == "cuda" and torch.cuda.device_count() >= ranks else "gloo"
    distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    try:
        train(config, RunDir(folder), rank, ranks, device)
    finally:
        distributed.destroy_process_group()
        meeting.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
