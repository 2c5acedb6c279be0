"""What all peers start from: their command line, the network, and mini-batches that lie in memory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from hpcsplit.assemble import build_network, make_optimizer
from hpcsplit.config import Config, load
from hpcsplit.data.catalog import lookup
from tools.benchmarks.turns import Player

WARM_UP = 2


def arguments() -> argparse.Namespace:
    """What the driver passes to every process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", help="which of the file's ways")
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, required=True, help="of a turn")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--turns", required=True)
    parser.add_argument("--first", required=True)
    return parser.parse_args()


class Problem:
    """The network of a configuration, its optimizer and its mini-batches."""

    def __init__(self, path: str) -> None:
        self.config: Config = load(path)
        self.net = build_network(self.config)
        if self.config.run.channels_last:
            self.net.to(memory_format=torch.channels_last)
        self.net.train()
        spec, size = lookup(self.config.data.name), self.config.data.batch_size
        random = torch.Generator().manual_seed(0)
        self.images = torch.randn(size, *spec.input_shape(self.config.data.pool), generator=random)
        if self.config.run.channels_last:
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(spec.classes, (size,), generator=random)
        self.loss = nn.CrossEntropyLoss()

    def optimizer(self, part: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(self.config, list(part.parameters()))


def compete(player: Player, step: Callable[[], None], steps: int) -> None:
    """Warm up, then time so many steps in every turn."""
    for _ in range(WARM_UP):
        step()
    for number in player.turns():
        began = time.perf_counter()
        for _ in range(steps):
            step()
        player.note(number, (time.perf_counter() - began) / steps)
