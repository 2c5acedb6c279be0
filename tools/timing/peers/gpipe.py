"""torchgpipe (Kim et al., 2020): one process whose threads own a stage each, on as many cores."""

from __future__ import annotations

from itertools import pairwise

import torch
from torchgpipe import GPipe

from tools.timing.peers.common import Problem, compete
from tools.timing.turns import Player, told

RANKS = 2


def main() -> None:
    _, config, place, first = told()
    player = Player(place, first, cores=RANKS)
    torch.set_num_threads(1)
    problem = Problem(config, first)
    edges = [0, *(int(cut) for cut in config.split.cuts), len(problem.net)]
    balance = [end - begin for begin, end in pairwise(edges)]
    net = GPipe(problem.net, balance, devices=["cpu"] * RANKS, chunks=config.schedule.microbatches, checkpoint="never")
    compete(player, problem.trainer(net, problem.images, problem.labels), problem)


if __name__ == "__main__":
    main()
