"""torchgpipe (Kim et al., 2020): one process whose threads own a stage each, on as many cores."""

from __future__ import annotations

import torch
from torchgpipe import GPipe

from hpcsplit.stage.cuts import ranges
from tools.timing.peers.common import Problem, compete
from tools.timing.turns import Player, told


def main() -> None:
    _, config, place, first = told()
    stages = len(config.split.cuts) + 1
    player = Player(place, first, cores=stages)
    torch.set_num_threads(1)
    problem = Problem(config, first)
    balance = [len(part) for part in ranges([int(cut) for cut in config.split.cuts], len(problem.net))]
    net = GPipe(problem.net, balance, devices=["cpu"] * stages, chunks=config.schedule.microbatches, checkpoint="never")
    compete(player, problem.trainer(net, problem.images, problem.labels), problem)


if __name__ == "__main__":
    main()
