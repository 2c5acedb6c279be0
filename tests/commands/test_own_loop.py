"""`hpcsplit.split`: a loop of one's own with stages gives the bits of plain torch, or those of `train`."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hpcsplit
from hpcsplit.checkpoint.state import digest
from hpcsplit.config.declared import declared_methods
from hpcsplit.data.order import batches, epoch_order
from hpcsplit.engine.job import Job
from hpcsplit.plan.setting import Setting
from tests.engine.small import config, make_jobs, train_here, weights, write_toml
from tests.wire.launch import needs_mpi, python

SIZE, SAMPLES = 8, 24
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def small_net() -> nn.Sequential:
    torch.manual_seed(3)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    pool = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.0), nn.ReLU(), nn.Flatten())
    return nn.Sequential(OrderedDict(one=conv, two=pool, three=nn.Linear(4 * 36, 8), four=nn.Linear(8, 3)))


def some_data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randn(SAMPLES, 1, 6, 6), torch.randint(0, 3, (SAMPLES,))


def visited(epochs: int) -> list[np.ndarray]:
    return [ids for epoch in range(epochs) for ids in batches(epoch_order(0, epoch, SAMPLES), SIZE)]


@pytest.mark.parametrize("cuts", [[], [2], [1, 3]])
def test_exact_steps_are_those_of_plain_torch(cuts: list[int]) -> None:
    """To the bit, loss and weights, with any number of stages."""
    net, (x, y) = small_net(), some_data()
    plain = copy.deepcopy(net)
    optimizer = SGD(list(plain.parameters()))
    stages = hpcsplit.split(net, (1, 6, 6), method="backprop", cuts=cuts, optimizer=SGD)
    assert (len(stages.stages), stages.first, stages.last) == (len(cuts) + 1, True, True)
    for ids in visited(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(plain(x[ids]), y[ids])
        loss.backward()
        optimizer.step()
        assert stages.step(x[ids], y[ids]) == pytest.approx(float(loss.detach()))
    for name, t in plain.state_dict().items():
        assert torch.equal(net.state_dict()[name], t), name
        assert torch.equal(stages.state_dict()[name], t), name
    plain.eval()
    outputs = stages.infer(x)
    assert outputs is not None
    with torch.no_grad():
        assert torch.equal(outputs, plain(x))
    assert net.training


def test_a_loss_of_ones_own_and_a_learning_rate() -> None:
    net, (x, _) = nn.Sequential(nn.Linear(36, 5), nn.Linear(5, 1)), some_data()
    flat, target = x.flatten(1), x.mean((1, 2, 3))
    plain = copy.deepcopy(net)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.squeeze(1) - targets).square()

    stages = hpcsplit.split(net, (36,), method="backprop", cuts=[1], optimizer=SGD, loss=loss)
    optimizer = SGD(list(plain.parameters()))
    for lr in (0.1, 0.01):
        stages.set_lr(lr)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss(plain(flat), target).mean().backward()
        optimizer.step()
        stages.step(flat, target)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))
    mean = hpcsplit.split(copy.deepcopy(net), (36,), method="backprop", cuts=[1], loss=nn.MSELoss())
    with pytest.raises(hpcsplit.ConfigError, match="return one number for each"):
        mean.step(flat, target[:, None])


def as_trained(tmp_path: Path, epochs: int, **changes: Any) -> tuple[str, Job]:
    """The hash of the weights of a run of parallel epochs, and a job of the whole network as it begins."""
    plain = {"data__augment": False, "run__channels_last": False, "schedule__ratio": "0:1", "schedule__warmup": 0}
    plain |= {"optim__lr_schedule": "constant", "optim__weight_decay": 0.0, "schedule__epochs": epochs, **changes}
    toml = write_toml(tmp_path / "c.toml", 2, **plain)
    assert train_here(toml, tmp_path / "run") == 0
    exact = {key: value for key, value in plain.items() if not key.startswith("method__")}
    (job,) = make_jobs(config(1, **exact, method__name="backprop"), 1, tmp_path / "whole")
    return weights(tmp_path / "run")[-1][1], job


METHODS: dict[str, dict[str, Any]] = {
    "delayed": {},
    "penalty": {"beta": 0.5},
    "al": {"downsample": 1, "start": "adjoint"},
    "gsadmm": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_steps_are_those_of_a_run(tmp_path: Path, method: str) -> None:
    """The same mini-batches in the same order, variables begun before the first epoch: the same bits as `train`."""
    options = METHODS[method]
    wanted, job = as_trained(tmp_path, 2, method__name=method, **{f"method__{k}": v for k, v in options.items()})
    net = nn.Sequential(OrderedDict(job.stage.blocks.named_children()))
    for block in net:
        block._forward_hooks.clear()
        block._forward_pre_hooks.clear()
    stages = hpcsplit.split(
        net,
        job.stage.in_shape,
        method=method,
        cuts=[3],
        optimizer=Setting(config(1, optim__weight_decay=0.0)).optimizer,
        samples=job.train_size,
        **options,
    )

    def views(ids: np.ndarray) -> tuple[Tensor, Tensor]:
        return job.train.images(ids), job.train.labels(ids)

    for ids in job.in_order(job.train_size):
        stages.begin(*views(ids), ids=ids)
    for epoch in range(2):
        for ids in job.epoch_batches(epoch):
            stages.step(*views(ids), ids=ids)
        stages.finish()
    assert digest(stages.state_dict()) == wanted


@pytest.mark.parametrize("cuts", [[2], [1, 3]])
@pytest.mark.parametrize("method", [m.name for m in declared_methods().values() if not m.full_batch])
def test_every_method_of_mini_batches_learns(method: str, cuts: list[int]) -> None:
    """Exact and other steps take turns; all that is asked for are samples that are named."""
    net, (x, y) = small_net(), some_data()
    stages = hpcsplit.split(net, (1, 6, 6), method=method, cuts=cuts, samples=SAMPLES)
    before = copy.deepcopy(net.state_dict())
    for number, ids in enumerate(visited(3)):
        loss = stages.step(x[ids], y[ids], ids=ids, exact=number in (0, 5))
        assert loss is not None
        assert np.isfinite(loss)
    stages.finish()
    after = net.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


def missing(stages: hpcsplit.Split, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    ids = np.arange(4)
    return {
        "x is missing": lambda: stages.step(y=y[:4], ids=ids),
        "y is missing": lambda: stages.step(x[:4], ids=ids),
        "ids are missing": lambda: stages.step(x[:4], y[:4]),
        r"speak of \[3, 4\] samples": lambda: stages.step(x[:4], y[:3], ids=ids),
        "ids go from 0 to 24, there are samples=24": lambda: stages.step(x[:2], y[:2], ids=[0, 24]),
        "ids name a sample twice": lambda: stages.step(x[:2], y[:2], ids=[1, 1]),
    }


def test_what_is_missing_is_a_sentence() -> None:
    x, y = some_data()
    stages = hpcsplit.split(small_net(), (1, 6, 6), method="penalty", cuts=[2], samples=SAMPLES)
    for words, call in missing(stages, x, y).items():
        with pytest.raises(hpcsplit.ConfigError, match=words):
            call()
    wrong: dict[str, dict[str, Any]] = {
        "is not one of": {"method": "sgd"},
        "iterates over all samples, so it has no step": {"method": "pdadmm"},
        "penalty has no option gamma; it has beta": {"method": "penalty", "gamma": 1.0, "samples": 3},
        r"method\.beta = -1\.0 must be greater than 0": {"method": "penalty", "beta": -1.0},
        "say of how many: samples=N": {"method": "penalty", "cuts": [2]},
        "is no balance": {"cuts": "time"},
        "makes 2 stages, there are 3": {"cuts": [2], "stages": 3},
        "backprop has no option beta": {"method": "backprop", "beta": 1.0},
    }
    for words, how in wrong.items():
        with pytest.raises(hpcsplit.ConfigError, match=words):
            hpcsplit.split(small_net(), (1, 6, 6), **how)
    with pytest.raises(hpcsplit.ConfigError, match="2 stages need at least 2 blocks"):
        hpcsplit.split(nn.Linear(3, 3), (3,))  # type: ignore[arg-type]


PROGRAM = """
import hashlib, sys, torch
import hpcsplit
from mpi4py import MPI
from tests.commands.test_own_loop import SGD, SAMPLES, small_net, some_data, visited
torch.set_num_threads(1)
x, y = some_data()
for method in ("backprop", "delayed", "penalty"):
    stages = hpcsplit.split(small_net(), (1, 6, 6), method=method, cuts=[2], comm=MPI.COMM_WORLD, optimizer=SGD,
                            samples=SAMPLES)
    for ids in visited(2):
        mine = {"x": x[ids]} if stages.first else {"y": y[ids]}
        loss = stages.step(**mine, ids=ids)
        assert (loss is None) != stages.last
    stages.finish()
    parts = MPI.COMM_WORLD.gather({name: t.clone() for name, t in stages.state_dict().items()})
    if stages.first:
        here = hpcsplit.split(small_net(), (1, 6, 6), method=method, cuts=[2], optimizer=SGD, samples=SAMPLES)
        for ids in visited(2):
            here.step(x[ids], y[ids], ids=ids)
        here.finish()
        both = parts[0] | parts[1]
        assert all(torch.equal(t, both[name]) for name, t in here.state_dict().items()), method
        print(method, "the same")
"""


@needs_mpi
@pytest.mark.mpi
def test_ranks_have_the_bits_of_one_process() -> None:
    done = python("-c", PROGRAM, ranks=2)
    assert done.code == 0, done.err
    assert done.out.split() == ["backprop", "the", "same", "delayed", "the", "same", "penalty", "the", "same"]
