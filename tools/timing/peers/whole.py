"""The whole network in one process, on one core (or device) or on two cores."""

from __future__ import annotations

from tools.timing.peers.common import Problem, arguments, compete, configuration  # isort: skip; sets the allocator

import torch

from tools.timing.turns import Player

THREADS = {"one": 1, "two": 2}


def main() -> None:
    args = arguments()
    threads = THREADS[args.kind]
    player = Player(args.turns, args.first, 0, cores=threads)
    torch.set_num_threads(threads)
    problem = Problem(configuration(args), player.number)
    optimizer = problem.optimizer(problem.net)

    def step() -> None:
        optimizer.zero_grad()
        with problem.autocast():
            loss = problem.loss(problem.net(problem.images), problem.labels)
        loss.backward()
        optimizer.step()

    compete(player, step, args.steps)


if __name__ == "__main__":
    main()
