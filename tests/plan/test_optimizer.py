"""Optimizers by name and from the user's own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hpcsplit import cli
from hpcsplit.checkpoint.state import load_stage, stage_tensors
from hpcsplit.config import resolve
from hpcsplit.config.optimizers import OPTIMIZERS, known_name
from hpcsplit.errors import ConfigError
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.trial import check_network
from hpcsplit.stage.stage import Stage
from tests.engine.small import config, train_here, write_toml

MINE = "tests.plan.myoptims"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("SGD", "sgd"),
        ("AdamW", "adamw"),
        ("torch.optim.RMSprop", "rmsprop"),
        ("optim.NAdam", "nadam"),
        ("Rprop", "rprop"),
    ],
)
def test_torchs_own_names_are_known(name: str, known: str) -> None:
    assert resolve({"optim": {"name": name}}).optim.name == known
    assert known_name(known) == known


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("LBFGS", r'"LBFGS": it computes the loss several times in a step.*take another, such as "adamw"'),
        ("SparseAdam", r"it takes sparse gradients alone"),
        ("adamm", r'optim\.name = "adamm" is not one of sgd, .*package\.module:factory; did you mean adam\?'),
        ("", r'optim\.name = "" is not one of sgd'),
    ],
)
def test_what_is_no_optimizer_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve({"optim": {"name": name}})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_one_of_the_list_moves_weights(name: str) -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    optimizer = Setting(config(optim__name=name, optim__lr=0.1)).optimizer([weight])
    weight.grad = torch.ones(3, 4)
    optimizer.step()
    assert (weight != 1).any()


@pytest.mark.parametrize("network", ["resnet8", "tests.engine.tinynet:small"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "fails",
            r"the call fails\(params, lr=0\.05, weight_decay=0\.0001\) failed \(TypeError: .*myoptims\.py line 75",
        ),
        ("no_optimizer", r"the factory returned NoneType; return a torch\.optim\.Optimizer"),
        ("Misspelt", r"fails in its step \(AttributeError: .*myoptims\.py line 63\); correct it"),
        ("Lists", r"keeps 'history' of a weight as list"),
        ("Hidden", r"takes another step after a checkpoint than it would have without a stop"),
        ("absent", r"has no function absent"),
    ],
)
def test_a_users_optimizer_with_a_bug_is_one_sentence(name: str, sentence: str, network: str) -> None:
    setting = Setting(config(optim__name=f"{MINE}:{name}", model__name=network))
    with pytest.raises(ConfigError, match=rf'^optim\.name = "{MINE}:\w+"') as error:
        check_network(setting, torch.device("cpu"))
    assert error.match(sentence)


@pytest.mark.parametrize("network", ["resnet8", "tests.engine.tinynet:small"])
@pytest.mark.parametrize("name", [f"{MINE}:Lion", f"{MINE}:matrices_alone", "torch.optim:Adafactor", "torch.optim:SGD"])
def test_good_ones_are_taken(name: str, network: str) -> None:
    changes = {"optim__name": name, "model__name": network}
    for spared in (True, False):
        if name != f"{MINE}:matrices_alone" or spared:  # it cannot take groups
            check_network(Setting(config(1, **changes, optim__decay_norms=spared)), torch.device("cpu"))


def lion() -> Stage:
    blocks = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    torch.manual_seed(0)
    for p in blocks.parameters():
        nn.init.normal_(p)
    setting = Setting(config(optim__name=f"{MINE}:Lion", optim__decay_norms=False))
    return Stage(0, 1, blocks, ((2,), (3,), (1,)), setting.optimizer)


def test_numbers_come_back_as_what_they_were() -> None:
    ours, theirs = lion(), lion()
    for p in ours.parameters:
        p.grad = torch.ones_like(p)
    ours.update()
    ours.update()
    load_stage(theirs, stage_tensors(ours))
    assert ours.optimizer
    assert theirs.optimizer
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        here, there = ours.optimizer.state[a], theirs.optimizer.state[b]
        assert {k: v for k, v in there.items() if k not in ("mean", "rows")} == {
            "count": 2,
            "part": 1 / 27,
            "late": False,
        }
        assert [type(there[key]) for key in ("count", "part", "late")] == [int, float, bool]
        assert all(torch.equal(here[key], there[key]) for key in ("mean", "rows"))
    for mine, other in zip(ours.optimizer.param_groups, theirs.optimizer.param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
        assert other["steps"] == 2
    assert [group["weight_decay"] for group in theirs.optimizer.param_groups] == [1e-4, 0.0]


def test_a_run_directory_can_be_looked_at_without_its_optimizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"model__name": "resnet8", "schedule__epochs": 1, "data__limit_train": 32, "method__name": "backprop"}
    toml = write_toml(tmp_path / "c.toml", 1, **changes, optim__name=f"{MINE}:Lion")
    assert train_here(toml, tmp_path / "run") == 0
    monkeypatch.setattr(f"{MINE}.Lion.step", None)
    monkeypatch.setattr(f"{MINE}.Lion.__init__", None)
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    assert cli.main(["plan", str(tmp_path / "run" / "config.toml")]) == 65
    assert f'optim.name = "{MINE}:Lion" in {tmp_path / "run" / "config.toml"} names code' in capsys.readouterr().err
