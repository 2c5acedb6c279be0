"""Users' networks: what cannot be trained is refused with the block and the line, before anything is trained; what
only needs values, the plain memory format or another last mini-batch gets that."""

from __future__ import annotations

import json
import random
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcsplit.cli import main
from hpcsplit.config import Config
from hpcsplit.config.load import resolve
from hpcsplit.errors import ConfigError
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.trial import Checked, check_network, evaluation_sizes, training_sizes
from tests.engine.small import config as engine_config
from tests.engine.small import make_jobs

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F

class Does(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, x):
        return self.function(x, self.training)

def stem(shape):
    return nn.Sequential(nn.Conv2d(shape[0], 8, 3, stride=8, padding=1), nn.ReLU())

def head(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))

def between(*blocks):
    return lambda input_shape, classes: nn.Sequential(stem(input_shape), *(b() for b in blocks), head(classes))

def does(function):
    return between(lambda: Does(function))

def rates(input_shape, classes):
    drop = [r.item() for r in torch.linspace(0, 0.2, 3)]
    return between(lambda: nn.Dropout(drop[1]))(input_shape, classes)

def from_numpy(input_shape, classes):
    net = between(lambda: nn.Conv2d(8, 8, 1))(input_shape, classes)
    net[1].weight = nn.Parameter(torch.from_numpy(0.1 * torch.randn(8, 8, 1, 1).numpy()))
    return net

branches = does(lambda x, training: 2 * x if x.mean() > 0 else x)
scaled = does(lambda x, training: x / (1 + float(x.detach().abs().max())))

dropout = between(lambda: nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Conv2d(8, 8, 1)))
noise = does(lambda x, training: x.add_(torch.randn_like(x)) if training else x)
through_a_view = does(lambda x, training: F.relu(x[:, :4], inplace=True).repeat(1, 2, 1, 1) + x)
through_data = does(lambda x, training: x.data.mul_(2) + x)
in_evaluation = does(lambda x, training: x + 1 if training else x.add_(1))
nested = between(lambda: nn.Sequential(nn.Identity(), nn.Sequential(nn.Sequential(nn.ReLU(inplace=True)))))
def in_the_first(input_shape, classes):
    return nn.Sequential(Does(lambda x, training: x.mul_(2)), stem(input_shape), head(classes))
own_tensors = does(lambda x, training: (2 * x).add_(1).relu_())

def double(input_shape, classes):
    return between()(input_shape, classes).double()
def half(input_shape, classes):
    return between()(input_shape, classes).half()
def complex_numbers(input_shape, classes):
    return between()(input_shape, classes).to(torch.complex64)
double_between = does(lambda x, training: x.double())
integers = does(lambda x, training: x.int())
two = does(lambda x, training: (x, x) if training else x)
not_finite = does(lambda x, training: x.sub(1).log())
no_gradient = does(lambda x, training: x.detach() + 1)
overwritten = does(lambda x, training: torch.sigmoid(x).add_(1))

def pixels(input_shape, classes):
    return nn.Sequential(stem(input_shape), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, classes, 1))
def too_many(input_shape, classes):
    return between()(input_shape, classes + 1)
def too_long(input_shape, classes):
    return nn.Sequential(stem(input_shape), nn.Flatten(), nn.Linear(5, classes))

class View(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)
def view(input_shape, classes):
    return nn.Sequential(stem(input_shape), nn.Conv2d(8, 8, 1), View(), nn.Linear(128, classes))
view_after_permute = between(lambda: Does(lambda x, training: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
                             lambda: Does(lambda x, training: x.permute(0, 2, 3, 1).reshape(len(x), -1).view(x.shape)))
reshape = does(lambda x, training: x.reshape(len(x), -1).reshape(x.shape))

vector_norm = between(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8)))
own_norm = does(lambda x, training: (x - x.mean(0)) / (x.std(0) + 1e-5) if training else x)
def squeezed(input_shape, classes):
    squeeze = Does(lambda x, training: x.squeeze())
    return nn.Sequential(stem(input_shape), nn.AdaptiveAvgPool2d(1), squeeze, nn.Linear(8, classes))

def weight_norm(input_shape, classes):
    return between(lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 1)))(input_shape, classes)
def spectral_norm(input_shape, classes):
    return between(lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)))(input_shape, classes)

def shared_statistics(input_shape, classes):
    norm = nn.BatchNorm2d(8, affine=False)
    return between(lambda: nn.Sequential(norm), lambda: nn.Sequential(norm))(input_shape, classes)
shortens = does(lambda x, training: x[:31])
def shared_constant(input_shape, classes):
    act = nn.PReLU()
    act.weight.requires_grad_(False)
    mask = torch.ones(8, 1, 1)
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", mask)
        def forward(self, x):
            return x * self.mask
    return between(Masked, Masked)(input_shape, classes)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trial_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trial_nets", raising=False)


def small(name: str, **changes: Any) -> Config:
    """A configuration with 96 training and 64 test images; keys are section__key."""
    given: dict[str, dict[str, Any]] = {
        "data": {"name": "fake", "limit_train": 96, "limit_test": 64, "batch_size": 32},
        "model": {"name": name if name == "resnet8" else f"trial_nets:{name}"},
        "method": {"name": "penalty"},
        "schedule": {"epochs": 2, "ratio": "1:1"},
        "optim": {"lr": 0.01},
        "run": {"baseline": False},
    }
    for key, value in changes.items():
        section, _, option = key.partition("__")
        given.setdefault(section, {})[option] = value
    return resolve(given)


def checked(name: str, **changes: Any) -> Checked:
    return check_network(Setting(small(name, **changes)), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dropout", r"block 1 \(Sequential\) changes its input in place"),
        ("noise", r"block 1 \(Does, trial_nets.py line 6\) changes its input in place \(trial_nets.py line 38\)"),
        ("through_a_view", r"block 1 .* changes its input in place \(trial_nets.py line 39\)"),
        ("through_data", r"block 1 .* changes its input in place"),
        ("in_evaluation", r"block 1 .* changes its input in place \(trial_nets.py line 41\)"),
        ("nested", r"block 1 \(Sequential\) changes its input in place"),
        ("in_the_first", r"block 0 .* changes its input in place \(trial_nets.py line 44\).*a new tensor$"),
        ("double", r"block 0 .* does not take .*weights are float64.* make them float32"),
        ("half", r"block 0 .* does not take .*weights are float16 .* make them float32"),
        ("complex_numbers", r"block 0 .* does not take .*weights are complex64 .* make them float32"),
        ("double_between", r"block 1 .* returns float64 .*activations are float32"),
        ("integers", r"block 1 .* returns torch.int32 numbers"),
        ("two", r"block 1 .* returns tuple for 2 samples in training mode"),
        ("not_finite", r"block 1 .* returns numbers that are not finite"),
        ("no_gradient", r"block 1 .* gives its input no gradient"),
        ("overwritten", r"block 1 .* backward pass fails .*modified by an inplace operation"),
        ("pixels", r"block 2 .* outputs of shape \(10, 1, 1\) a sample; fake needs a vector of 10.*nn.Flatten\(\)"),
        ("too_many", r"block 1 .* outputs of shape \(11,\) a sample; fake needs a vector of 10"),
        ("too_long", r"block 2 \(Linear\) .* does not take samples of shape \(128,\)"),
        ("shortens", r"block 1 .* \(31, 8, 4, 4\) for 32 samples in training mode.*data.batch_size is 32"),
        ("shared_statistics", r"block 1 .* and block 2 .* share the buffer 0.running_mean and change it"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_block(name: str, sentence: str) -> None:
    with pytest.raises(
        ConfigError, match=rf'^model.name = "trial_nets:{name}" \(trial_nets.py line \d+\): .*{sentence}'
    ):
        checked(name)


@pytest.mark.parametrize(
    "name",
    [
        *("rates", "from_numpy", "branches", "scaled", "own_tensors", "view_after_permute", "reshape", "weight_norm"),
        *("spectral_norm", "shared_constant", "squeezed", "vector_norm"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_can_be_trained_is_taken_as_it_is(name: str, precision: str) -> None:
    assert checked(name, run__precision=precision).adapted == {}


def test_values_are_noticed_in_the_plan() -> None:
    assert [cost.by_value for cost in Setting(small("branches")).blocks] == [False, True, False]


@pytest.mark.parametrize("name", ["rates", "from_numpy"])
def test_a_factory_that_looks_at_values_gets_them(name: str) -> None:
    assert not next(Setting(small(name)).net.parameters()).is_meta
    assert next(Setting(small("resnet8")).net.parameters()).is_meta


def test_a_view_takes_the_plain_format() -> None:
    found = checked("view")
    assert found.adapted == {"run.channels_last": False}
    assert found.setting.config.run.channels_last is False
    assert "block 2 (View, trial_nets.py line 69)" in found.notes[0]
    assert checked("view", run__channels_last=False).notes == ()


@pytest.mark.parametrize("name", ["vector_norm", "own_norm", "squeezed"])
@pytest.mark.parametrize(
    "changes",
    [
        {"data__limit_train": 97},
        {"data__limit_train": 98, "schedule__microbatches": 2},
        {"data__limit_train": 1025, "data__batch_size": 0},
    ],
)
def test_a_last_batch_or_piece_of_one_is_joined(name: str, changes: dict[str, Any]) -> None:
    found = checked(name, **changes)
    assert found.adapted == {"data.last_batch": "join"}
    assert 1 not in training_sizes(found.setting)
    assert "1 sample" in found.notes[0]


@pytest.mark.parametrize("name", ["resnet8", "branches"])
def test_one_sample_is_taken_where_it_can_be(name: str) -> None:
    assert checked(name, data__limit_train=97).adapted == {}


def test_pieces_of_one_that_no_joining_mends_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 sample .*of 20 micro-batches of a mini-batch of 32 one has 1"):
        checked("vector_norm", schedule__microbatches=20)


def test_one_sample_of_an_evaluation_is_joined_too() -> None:
    found = checked("squeezed", data__limit_test=65)
    assert found.adapted == {"data.last_batch": "join"}
    assert 1 not in evaluation_sizes(found.setting)


@pytest.mark.parametrize(("last", "epoch", "forward"), [("keep", 1, 1), ("join", 33, 33), ("drop", 32, 33)])
def test_all_passes_of_a_run_have_that_last_batch(tmp_path: Path, last: str, epoch: int, forward: int) -> None:
    changes = {"data__limit_train": 97, "data__last_batch": last, "method__name": "backprop"}
    job = make_jobs(engine_config(1, **changes), 1, tmp_path / "run")[0]
    sizes = [len(batches[-1]) for batches in (job.epoch_batches(1), job.measured(), job.in_order(97))]
    assert sizes == [epoch, epoch, forward]


def test_dropping_needs_a_method_without_variables() -> None:
    assert checked("vector_norm", method__name="backprop", data__limit_train=97, data__last_batch="drop").adapted == {}
    with pytest.raises(ConfigError, match=r'"drop": penalty keeps variables .*"join"'):
        small("vector_norm", data__last_batch="drop")


def test_nothing_is_drawn_and_nothing_changes() -> None:
    setting = Setting(small("noise"))
    net = setting.net
    before = {name: t.clone() for name, t in net.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()  # noqa: NPY002
    with pytest.raises(ConfigError):
        check_network(setting, torch.device("cpu"))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate())  # noqa: NPY002
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in net)


def test_a_compiler_that_is_not_there_is_missed_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(
        ConfigError, match=r"run.torch_compile = true, but .*no-such-compiler.*run.torch_compile = false"
    ):
        checked("resnet8", run__torch_compile=True)


CONFIG = """
[data]
name = "fake"
limit_train = 97
limit_test = 64
batch_size = 32
[model]
name = "trial_nets:{name}"
[schedule]
epochs = 2
ratio = "1:1"
[optim]
lr = 0.01
[run]
runner = "lockstep"
stages = 2
"""


def test_plan_and_train_refuse_with_the_same_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONFIG.format(name="dropout"))
    assert main(["plan", str(file)]) == 65
    said = capsys.readouterr().err
    assert "changes its input in place" in said
    assert main(["train", str(file), "--run-dir", str(tmp_path / "run")]) == 65
    assert capsys.readouterr().err == said
    assert not (tmp_path / "run").exists()


SEVEN = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(1024, 8), nn.Linear(8, 7)
    def forward(self, x):
        return self.two(self.one(x.flatten(1)).relu())

def module(input_shape, classes):
    return Net()

def blocks(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 7))
"""


@pytest.mark.parametrize("name", ["module", "blocks"])
def test_plan_and_train_count_the_outputs_with_the_same_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "seven_nets.py").write_text(SEVEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "seven_nets", raising=False)
    (tmp_path / "c.toml").write_text(f"[data]\nname = 'digits'\n[model]\nname = 'seven_nets:{name}'\n")
    said = set()
    for command in (["plan"], ["train", "--run-dir", str(tmp_path / "run")]):
        assert main([command[0], str(tmp_path / "c.toml"), *command[1:], "--run.runner", "lockstep"]) == 65
        said.add(capsys.readouterr().err)
    [sentence] = said
    assert "returns outputs of shape (7,) a sample; digits needs a vector of 10, a logit for each class" in sentence


def test_what_is_adapted_is_trained_continued_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "config.toml", tmp_path / "run"
    file.write_text(CONFIG.format(name="view"))
    start = ["train", str(file), "--run-dir", str(run), "--method.name", "penalty"]
    assert main([*start, "--schedule.epochs", "2"]) == 0
    assert "note: block 2 (View, " in capsys.readouterr().out
    assert tomllib.loads((run / "config.toml").read_text())["run"]["channels_last"] is False
    assert main(start) == 0  # there is nothing left to do, and nothing to complain of
    assert main(["evaluate", str(run), "--config", str(file), "--json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{\n") :])
    assert found["loss"] == pytest.approx(found["recorded"]["loss"], rel=1e-5)
