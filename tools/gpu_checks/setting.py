"""What every check is told: the device, how large it may be, where data and results lie, and small configurations."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcsplit.config import Config, resolve
from hpcsplit.host.device import wait_for
from tools.program import Sections, merged, text

Finding = dict[str, Any]  # with "ok": True, False, or None for what could not be asked here
Check = Callable[["Setting"], Iterator[Finding]]
CUTS = {"resnet8": 2, "resnet20": 5, "resnet56": 15, "resnet110": 28}  # into two stages of about the same work


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        tiny: a dry run: smallest networks, a few steps.
        data: a folder with CIFAR-10 as torchvision lays it out, or None.
        until: when the check has to have ended, in s since 1970.
    """

    device: torch.device
    tiny: bool
    out: Path
    data: Path | None
    until: float

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def batch(self) -> int:
        return 8 if self.tiny else 128

    @property
    def networks(self) -> list[tuple[str, str]]:
        """(network, precision), the most important first."""
        large = [("resnet110", "float32"), ("resnet110", "bfloat16"), ("resnet20", "float32")]
        return [("resnet8", "float32")] if self.tiny else large

    @property
    def sizes(self) -> tuple[int, int]:
        """Steps of an epoch, epochs."""
        return (3, 2) if self.tiny else (25, 5)

    @property
    def left_s(self) -> float:
        return self.until - time.time()

    def seconds(self, act: Callable[[], Any], times: int = 20, inner: int = 1) -> float:
        """Median of so many turns of `inner` calls each, for one call, after a turn that does not count."""
        found = []
        for _ in range(1 + (2 if self.tiny else times)):
            wait_for(self.device)
            began = time.perf_counter()
            for _ in range(inner):
                act()
            wait_for(self.device)
            found.append((time.perf_counter() - began) / inner)
        return statistics.median(found[1:])


def small(network: str, stages: int, device: torch.device | str, **settings: dict[str, Any]) -> Sections:
    """The settings of a run on random images."""
    base: Sections = {
        "data": {"name": "fake", "limit_test": 64},
        "model": {"name": network},
        "split": {"cuts": [CUTS[network]] if stages == 2 else []},
        "run": {"threads": 1, "baseline": False, "device": torch.device(device).type},
    }
    return merged(base, settings)


def configuration(setting: Setting, network: str, stages: int, *, steps: int, **settings: dict[str, Any]) -> Config:
    """A run in memory whose epoch has so many steps, parallel ones if the method has any."""
    base = small(
        network,
        stages,
        setting.device,
        data={"limit_train": setting.batch * steps, "batch_size": setting.batch, "augment": True},
        method={"name": "backprop"},
        schedule={"epochs": 1000, "ratio": "0:1", "warmup": 0},
        store={"kind": "memory"},
    )
    return resolve(merged(base, settings), (), stem="gpu", source="tools/gpu")


def records(folder: Path) -> list[dict[str, Any]]:
    """What a run has written down of its epochs."""
    path = folder / "records.jsonl"
    return [json.loads(line) for line in text(path).splitlines()] if path.exists() else []
