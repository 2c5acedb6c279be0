"""Two processes by torch.distributed over gloo: data parallel, and a pipeline in GPipe's or 1F1B order."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from tools.benchmarks.peers.common import Problem, arguments, compete
from tools.benchmarks.turns import Player

RANKS = 2


def main() -> None:
    args = arguments()
    player = Player(args.turns, args.first, 0)
    torch.set_num_threads(1)
    problem = Problem(args.config)
    distributed.init_process_group("gloo", init_method=f"file://{args.turns}/meeting", rank=args.rank, world_size=RANKS)
    step = {"ddp": data_parallel, "gpipe": pipeline, "1f1b": pipeline}[args.kind]
    compete(player, step(problem, args.rank, args.kind), args.steps)


def data_parallel(problem: Problem, rank: int, kind: str):
    """Each rank has the whole network and a half of the mini-batch."""
    model = DistributedDataParallel(problem.net)
    optimizer = problem.optimizer(model)
    images, labels = problem.images.chunk(RANKS)[rank].clone(), problem.labels.chunk(RANKS)[rank]
    if problem.config.run.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        optimizer.zero_grad()
        problem.loss(model(images), labels).backward()
        optimizer.step()

    return step


def pipeline(problem: Problem, rank: int, kind: str):
    """The stages that the configuration cuts, with its number of micro-batches."""
    (cut,) = problem.config.split.cuts
    part: nn.Module = problem.net[:cut] if rank == 0 else problem.net[cut:]
    stage = PipelineStage(_Contiguous(part, problem.config.run.channels_last), rank, RANKS, torch.device("cpu"))
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
    """A stage that computes in channels-last; gloo takes contiguous tensors only."""

    def __init__(self, part: nn.Module, channels_last: bool) -> None:
        super().__init__()
        self.part = part
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x.contiguous(memory_format=self.format)).contiguous()


if __name__ == "__main__":
    main()
