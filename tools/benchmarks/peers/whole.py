"""The whole network in one process, on one core or on two."""

from __future__ import annotations

import torch

from tools.benchmarks.peers.common import Problem, arguments, compete
from tools.benchmarks.turns import Player

THREADS = {"one": 1, "two": 2}


def main() -> None:
    args = arguments()
    threads = THREADS[args.kind]
    player = Player(args.turns, args.first, 0, cores=threads)
    torch.set_num_threads(threads)
    problem = Problem(args.config)
    optimizer = problem.optimizer(problem.net)

    def step() -> None:
        optimizer.zero_grad()
        problem.loss(problem.net(problem.images), problem.labels).backward()
        optimizer.step()

    compete(player, step, args.steps)


if __name__ == "__main__":
    main()
