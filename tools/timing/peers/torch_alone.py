"""torch alone: the whole network in one process on one core (or device) or on two cores; and two processes by
torch.distributed over gloo: data parallel, and a pipeline in GPipe's or 1F1B order."""

from __future__ import annotations

from tools.timing.peers.common import Problem, compete, told  # isort: skip; sets the allocator

from collections.abc import Callable

import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from tools.timing.turns import Player

RANKS = 2


def main() -> None:
    kind, config, place, rank = told()
    cores = 2 if kind == "two" else 1
    player = Player(place, rank, cores)
    torch.set_num_threads(cores)
    problem = Problem(config, rank)
    if kind in ("one", "two"):
        step = problem.trainer(problem.net, problem.images, problem.labels)
    else:
        own_devices = problem.device.type == "cuda" and torch.cuda.device_count() >= RANKS
        backend, meeting = "nccl" if own_devices else "gloo", f"file://{place}/meeting"
        distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=RANKS)
        step = {"ddp": data_parallel, "gpipe": pipeline, "1f1b": pipeline}[kind](problem, rank, kind)
    compete(player, step, problem)


def data_parallel(problem: Problem, rank: int, kind: str) -> Callable[[], None]:
    """Each rank has the whole network and a half of the mini-batch."""
    images = problem.images.chunk(RANKS)[rank].clone().contiguous(memory_format=problem.format)
    return problem.trainer(DistributedDataParallel(problem.net), images, problem.labels.chunk(RANKS)[rank])


def pipeline(problem: Problem, rank: int, kind: str) -> Callable[[], None]:
    """The stages that the configuration cuts, with its number of micro-batches."""
    cut = int(problem.config.split.cuts[0])
    part: nn.Module = problem.net[:cut] if rank == 0 else problem.net[cut:]
    stage = PipelineStage(_Contiguous(part, problem), rank, RANKS, problem.device)
    order = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[kind]
    schedule = order(stage, problem.config.schedule.microbatches, loss_fn=problem.loss)
    optimizer = problem.optimizer(part)

    def step() -> None:
        optimizer.zero_grad()
        if rank == 0:
            schedule.step(problem.images)
        else:
            schedule.step(target=problem.labels, losses=[])
        optimizer.step()

    return step


class _Contiguous(nn.Module):
    """A stage that computes in its memory format and precision; gloo takes contiguous tensors only."""

    def __init__(self, part: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.part, self.problem = part, problem

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            x.register_hook(torch.Tensor.contiguous)
        with self.problem.autocast():
            y: torch.Tensor = self.part(x.contiguous(memory_format=self.problem.format))
        return y.float().contiguous()


if __name__ == "__main__":
    main()
