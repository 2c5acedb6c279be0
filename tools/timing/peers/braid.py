"""TorchBraid (Guenther et al., 2020): the ODE net of tools/timing/networks.py over MPI, layer-parallel.

"serial": one level, exact; "mgrit": multigrid in time with the iterations of TorchBraid's examples, inexact gradients.
"""

from __future__ import annotations

import torch
import torchbraid
from mpi4py import MPI

from tools.timing.networks import STEPS, rate
from tools.timing.peers.common import Problem, compete
from tools.timing.turns import Player, told

LEVELS = {"serial": 1, "mgrit": 3}
COARSENING, FORWARD, BACKWARD = 4, 2, 1  # factor between levels; iterations


def main() -> None:
    kind, config, place, first = told()
    comm = MPI.COMM_WORLD
    player = Player(place, first + comm.rank)
    torch.set_num_threads(1)
    problem = Problem(config, comm.rank)
    problem.images = problem.images.contiguous()
    problem.net.to(memory_format=torch.contiguous_format)
    steps = torchbraid.LayerParallel(comm, rate, STEPS, 1.0, max_fwd_levels=LEVELS[kind], max_bwd_levels=LEVELS[kind])
    steps.setPrintLevel(0)
    steps.setCFactor(COARSENING)
    steps.setFwdMaxIters(FORWARD)
    steps.setBwdMaxIters(BACKWARD)
    steps.setSkipDowncycle(True)
    on_first = steps.comp_op()  # the opening layer, the head and the loss
    net = torch.nn.ModuleList([steps, *([problem.net[0], problem.net[-1]] if comm.rank == 0 else [])])
    optimizer = problem.optimizer(net)

    def step() -> None:
        optimizer.zero_grad()
        x = steps(on_first(problem.net[0], problem.images))
        on_first(problem.loss, on_first(problem.net[-1], x), problem.labels).backward()
        optimizer.step()

    compete(player, step, problem)


if __name__ == "__main__":
    main()
