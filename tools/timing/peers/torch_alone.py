"""torch alone: the whole network in one process on one core (or device) or on two cores; and two processes by
torch.distributed over gloo: data parallel, whole or sharded, and pipelines, each without copies that it does not need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.pipelining import ScheduleInterleavedZeroBubble as ScheduleZBH1
from torch.distributed.pipelining import ScheduleZBVZeroBubble as ScheduleZBV
from torch.nn.parallel import DistributedDataParallel

from hpcsplit.stage.cuts import ranges
from tools.timing.peers.common import Problem, compete
from tools.timing.turns import Player, told

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
        step = {"ddp": data_parallel, "fsdp": sharded}.get(kind, pipeline)(problem, rank, kind)
    compete(player, step, problem)


def data_parallel(problem: Problem, rank: int, kind: str) -> Callable[[], None]:
    """Each rank has the whole network and a half of the mini-batch."""
    net = DistributedDataParallel(problem.net, static_graph=True, gradient_as_bucket_view=True, broadcast_buffers=False)
    return problem.trainer(net, *half(problem, rank))


def sharded(problem: Problem, rank: int, kind: str) -> Callable[[], None]:
    """The same with weights, gradients and optimizer states in halves; of the plain memory format, its weights are."""
    problem.net.to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(problem.device.type, (RANKS,))
    for block in problem.net:
        fully_shard(block, mesh=mesh)
    fully_shard(problem.net, mesh=mesh)
    problem.fused = False  # torch has no fused step for sharded parameters
    return problem.trainer(problem.net, *half(problem, rank))


def half(problem: Problem, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = problem.images.chunk(RANKS)[rank].clone().contiguous(memory_format=problem.format)
    return images, problem.labels.chunk(RANKS)[rank]


def pipeline(problem: Problem, rank: int, kind: str) -> Callable[[], None]:
    """The stages that the configuration cuts, with its number of micro-batches; in ZBV a rank has two of them."""
    cut = ranges([int(cut) for cut in problem.config.split.cuts], len(problem.net))
    count, pieces = len(cut), problem.config.schedule.microbatches
    mine = [rank] if count == RANKS else [rank, count - 1 - rank]
    parts = [
        _Part(problem.net[cut[k].start : cut[k].stop], problem, k == 0, k + 1 == count, kind == "zbv") for k in mine
    ]
    stages: list[Any] = [PipelineStage(part, k, count, problem.device) for part, k in zip(parts, mine, strict=True)]
    plan: Any = {"1f1b": Schedule1F1B, "zb-h1": ScheduleZBH1, "zbv": ScheduleZBV}[kind]
    schedule = plan(stages[0] if kind == "1f1b" else stages, pieces, loss_fn=problem.loss)
    optimizer = problem.optimizer(nn.ModuleList(parts))
    images = (problem.images,) if 0 in mine else ()
    labels = {"target": problem.labels, "losses": []} if count - 1 in mine else {}

    def step() -> None:
        optimizer.zero_grad()
        schedule.step(*images, **labels)
        optimizer.step()

    return step


class _Part(nn.Module):
    """A stage.  gloo takes contiguous tensors only: feature maps in torch.channels_last cross as what they are in
    memory, (B, H, W, C), without a copy but in ZBV, which detaches outputs in place: they must be no views."""

    def __init__(self, part: nn.Module, problem: Problem, first: bool, last: bool, owns: bool) -> None:
        super().__init__()
        self.part, self.problem, self.first, self.last, self.owns = part, problem, first, last, owns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = self.problem.format == torch.channels_last
        if x.requires_grad:
            x.register_hook(torch.Tensor.contiguous)
        if turned and not self.first and x.dim() == 4:
            x = x.permute(0, 3, 1, 2)
        with self.problem.autocast():
            y: torch.Tensor = self.part(x).float()
        if turned and not self.last and y.dim() == 4:
            y = y.permute(0, 2, 3, 1)
        y = y.contiguous()
        return y.clone() if self.owns else y


if __name__ == "__main__":
    main()
