"""What all peers start from: their command line, the network, and mini-batches that lie in memory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from hpcsplit.host.memory import keep_freed_memory

keep_freed_memory()  # before torch

import torch  # noqa: E402
from torch import nn  # noqa: E402

from hpcsplit.config import Config, load  # noqa: E402
from hpcsplit.data.catalog import lookup  # noqa: E402
from hpcsplit.plan.setting import Setting  # noqa: E402
from tools.timing.turns import Player  # noqa: E402

WARM_UP = 2


def arguments() -> argparse.Namespace:
    """What the driver passes to every process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", help="which of the file's ways")
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, required=True, help="of a turn")
    parser.add_argument("--set", dest="options", action="append", default=[], metavar="section.key=VALUE")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--turns", required=True)
    parser.add_argument("--first", required=True)
    return parser.parse_args()


def configuration(args: argparse.Namespace) -> Config:
    """The race's configuration with this way's own options."""
    return load(args.config, [tuple(option.split("=", 1)) for option in args.options])


class Problem:
    """The network of a configuration, its optimizer and its mini-batches, on one device."""

    def __init__(self, config: Config, number: int) -> None:
        self.config = config
        self.device = torch.device("cpu")
        if config.run.device == "cuda":
            self.device = torch.device("cuda", number % torch.cuda.device_count())
        self.format = torch.channels_last if config.run.channels_last else torch.contiguous_format
        self.net = Setting(config).network().to(self.device, memory_format=self.format).train()
        spec, size = lookup(config.data.name), config.data.batch_size
        random = torch.Generator().manual_seed(0)
        images = torch.randn(size, *spec.input_shape(config.data.pool), generator=random)
        self.images = images.to(self.device, memory_format=self.format)
        self.labels = torch.randint(spec.classes, (size,), generator=random).to(self.device)
        self.loss = nn.CrossEntropyLoss()

    def optimizer(self, part: nn.Module) -> torch.optim.Optimizer:
        return Setting(self.config).optimizer(list(part.parameters()))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.run.precision == "bfloat16")


def compete(player: Player, step: Callable[[], None], steps: int) -> None:
    """Warm up, then time so many steps in every turn."""
    for _ in range(WARM_UP):
        step()
    for number in player.turns():
        wait_for_device()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait_for_device()
        player.note(number, (time.perf_counter() - began) / steps)


def wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
