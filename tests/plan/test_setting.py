"""What follows from a configuration is worked out once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit import cli
from hpcsplit.config.optimizers import OPTIMIZERS
from hpcsplit.nets import shapes
from hpcsplit.plan import setting
from hpcsplit.plan.setting import Setting
from tests.engine.small import config, write_toml


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the data set is read, the network built, and a copy of it passed on meta."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, what: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            counts[what] += 1
            return real(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    count(setting, "load", "read")
    count(setting, "build", "built")
    count(shapes.Shadow, "__init__", "traced")
    return counts


@pytest.mark.parametrize("words", [[], ["--run.runner", "lockstep", "--run.stages", "2"]], ids=["alone", "lockstep"])
def test_a_start_looks_once(tmp_path: Path, looks: Counter[str], words: list[str]) -> None:
    toml = write_toml(
        tmp_path / "c.toml", model__name="resnet8", run__baseline=True, schedule__epochs=1, split__cuts="flops"
    )
    assert cli.main(["train", str(toml), "--run-dir", str(tmp_path / "run"), *words]) == 0
    assert looks == {"read": 1, "built": 2, "traced": 2}


def test_what_the_network_needs_changes_nothing_else(looks: Counter[str]) -> None:
    first = Setting(config(model__name="resnet8"))
    assert len(first.blocks) == len(first.kept) == 5
    assert first.batch_sizes == [32, 32, 32, 4]
    assert len(first.data.train) == 100
    other = first.adapted({"data.last_batch": "join"})
    assert other.batch_sizes == [32, 32, 36]
    assert (other.net, other.blocks, other.data) == (first.net, first.blocks, first.data)
    assert looks == {"read": 1, "built": 1, "traced": 2}


@pytest.mark.parametrize("name", [name for name, known in OPTIMIZERS.items() if known.betas])
def test_adams_family_takes_both_decays(name: str) -> None:
    made = Setting(config(1, optim__name=name, optim__beta1=0.5, optim__beta2=0.75))
    optimizer = made.optimizer([torch.nn.Parameter(torch.zeros(2, 3))])
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.75)]
