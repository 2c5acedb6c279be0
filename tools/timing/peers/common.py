"""What torch's peers start from: the network, and mini-batches that lie in memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from hpcsplit.config import Config
from hpcsplit.data.catalog import lookup
from hpcsplit.host.device import wait_for
from hpcsplit.plan.setting import Setting
from tools.timing.turns import Player

WARM_UP = 2


class Problem:
    """The network of a configuration, its optimizer, fused where that may be, and its mini-batches, on one device."""

    fused = True

    def __init__(self, config: Config, number: int) -> None:
        self.config = config
        on_gpu = config.run.device == "cuda"
        self.device = torch.device(f"cuda:{number % torch.cuda.device_count()}" if on_gpu else "cpu")
        self.format = torch.channels_last if config.run.channels_last else torch.contiguous_format
        self.net = Setting(config).network().to(self.device).to(memory_format=self.format).train()
        spec, size = lookup(config.data.name), config.data.batch_size
        random = torch.Generator().manual_seed(0)
        images = torch.randn(size, *spec.input_shape(config.data.pool), generator=random)
        self.images = images.to(self.device, memory_format=self.format)
        self.labels = torch.randint(spec.classes, (size,), generator=random).to(self.device)
        self.loss = nn.CrossEntropyLoss()

    def optimizer(self, part: nn.Module) -> torch.optim.Optimizer:
        optimizer = Setting(self.config).optimizer(list(part.parameters()))
        for group in optimizer.param_groups:
            group["fused"] = group.get("fused") and self.fused
        return optimizer

    def autocast(self, **more: bool) -> torch.autocast:
        half = self.config.run.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half, **more)

    def trainer(self, net: nn.Module, images: torch.Tensor, labels: torch.Tensor, **more: bool) -> Callable[[], None]:
        """A step of ordinary training on one mini-batch."""
        optimizer = self.optimizer(net)

        def step() -> None:
            optimizer.zero_grad()
            with self.autocast(**more):
                loss = self.loss(net(images), labels)
            loss.backward()
            optimizer.step()

        return step


def compete(player: Player, step: Callable[[], None], problem: Problem) -> None:
    """Warm up, then time the steps of an epoch in every turn."""
    steps = problem.config.data.limit_train // problem.config.data.batch_size
    for _ in range(WARM_UP):
        step()
    for number in player.turns():
        wait_for(problem.device)
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(steps):
            step()
        wait_for(problem.device)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        player.note(number, seconds / steps, cpu_s=cpu_s / steps)
