"""Optimizer state is where torch's own `load_state_dict` would have put it, and late weights may join."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hpcsplit.checkpoint.state import load_stage, stage_tensors
from hpcsplit.config.optimizers import OPTIMIZERS
from hpcsplit.plan.setting import Setting
from hpcsplit.stage.stage import Stage
from tests.engine.small import config

NAMES = ["sgd", "adam", "adamw", "adagrad", "adadelta", "rmsprop", "nadam", "radam", "adamax", "rprop"]


def stage(name: str, device: str = "cpu", momentum: float = 0.9) -> Stage:
    blocks = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3))
    blocks.register_parameter("scalar", nn.Parameter(torch.ones(())))
    cfg = config(optim__name=name, optim__lr=0.01, optim__momentum=momentum)
    shapes = ((1, 3, 3), (2, 1, 1), (2,), (3,))
    return Stage(0, 1, blocks, shapes, Setting(cfg).optimizer, device=device)


def optimizer_of(stage: Stage) -> torch.optim.Optimizer:
    assert stage.optimizer
    return stage.optimizer


def trained(name: str) -> Stage:
    made = stage(name)
    for _ in range(2):
        made.zero_grad()
        (made.forward(torch.randn(4, 1, 3, 3)).square().sum() * made.blocks.get_parameter("scalar")).backward()
        made.update()
    return made


def test_names_are_torchs_and_two_have_the_momentum() -> None:
    made = {name: optimizer_of(stage(name, momentum=0.7)) for name in NAMES}
    assert [type(optimizer).__name__.lower() for optimizer in made.values()] == NAMES
    assert {name for name in NAMES if made[name].param_groups[0].get("momentum") == 0.7} == {"sgd", "rmsprop"}


@pytest.mark.parametrize("flag", ["fused", "capturable"])
@pytest.mark.parametrize("name", NAMES)
def test_counters_lie_where_torch_would_have_put_them(name: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without values stands for a GPU."""
    saved = trained(name)
    monkeypatch.setitem(OPTIMIZERS, name, replace(OPTIMIZERS[name], fused=False))
    there, torchs = stage(name, "meta"), stage(name, "meta")
    for each in (there, torchs):
        optimizer_of(each).param_groups[0][flag] = True
    state = optimizer_of(saved).state_dict()
    optimizer_of(torchs).load_state_dict({**optimizer_of(torchs).state_dict(), "state": state["state"]})
    assert optimizer_of(torchs).param_groups[0][flag]
    load_stage(there, stage_tensors(saved))
    for ours, theirs in zip(there.parameters, torchs.parameters, strict=True):
        mine, wanted = optimizer_of(there).state[ours], optimizer_of(torchs).state[theirs]
        assert mine.keys() == {key for key, value in wanted.items() if value is not None}
        for key, value in mine.items():
            if key != "mu_product":  # a number on the host, with and without a stop
                assert value.device == wanted[key].device, key
            assert value.dtype == wanted[key].dtype, key


@pytest.mark.parametrize("flag", ["fused", "capturable"])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_read_is_not_changed_by_training_on(name: str, flag: str) -> None:
    saved, loaded = trained(name), stage(name)
    optimizer_of(loaded).param_groups[0][flag] = True
    tensors = {key: t.clone() for key, t in stage_tensors(saved).items()}
    load_stage(loaded, tensors)
    theirs = {t.untyped_storage().data_ptr() for t in tensors.values()}
    ours = [t for state in optimizer_of(loaded).state.values() for t in state.values()]
    assert not [t for t in (*ours, *loaded.parameters) if t.untyped_storage().data_ptr() in theirs]


@pytest.mark.parametrize("name", NAMES)
def test_state_comes_back_to_the_bit(name: str) -> None:
    saved, loaded = trained(name), stage(name)
    load_stage(loaded, stage_tensors(saved))
    for ours, theirs in zip(loaded.parameters, saved.parameters, strict=True):
        wanted = optimizer_of(saved).state[theirs]
        for key, value in optimizer_of(loaded).state[ours].items():
            assert torch.equal(value, torch.as_tensor(wanted[key])), key
            assert value.device == torch.as_tensor(wanted[key]).device


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_has_its_first_gradient_later_trains_as_one_that_is_alone(name: str) -> None:
    def steps(cfg_name: str, which: list[tuple[bool, bool]], alone: int | None = None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(5)) for _ in range(2)]
        mine = weights if alone is None else [weights[alone]]
        optimizer = Setting(config(optim__name=cfg_name, optim__lr=0.01)).optimizer(mine)
        for number, has in enumerate(which):
            for k, p in enumerate(weights):
                p.grad = torch.sin(torch.arange(5.0) + 3 * number + k) if has[k] else None
            if any(p.grad is not None for p in mine):
                optimizer.step()
        return [p.detach() for p in mine]

    course = [(True, False), (True, True), (False, True), (True, True)]
    together = steps(name, course)
    for k in range(2):
        assert torch.equal(together[k], steps(name, course, alone=k)[0])


@pytest.mark.parametrize("name", NAMES)
def test_complex_weights_train_beside_real_ones(name: str) -> None:
    real, turn = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = Setting(config(optim__name=name, optim__lr=0.01)).optimizer([real, turn])
    for _ in range(3):
        optimizer.zero_grad()
        ((real * turn).abs().square().sum()).backward()
        optimizer.step()
    assert (real < 1).all()
    assert (turn.abs() < 1).all()
    kinds = [(p.dtype, group.get("fused")) for group in optimizer.param_groups for p in group["params"]]
    if name in ("sgd", "adam", "adamw"):
        assert kinds == [(torch.float32, True), (torch.complex64, False)]
