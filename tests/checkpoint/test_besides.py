"""A run goes on as if it had not been stopped also where its network has more than weights; what it cannot, it says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hpcsplit import cli
from hpcsplit.stage.besides import Besides
from tests.checkpoint.conftest import STOP_AT_ONCE, Run
from tests.checkpoint.oddnets import Secret
from tests.engine.small import records, weights, write_toml

TWO_STOPS: dict[str, Any] = {
    "data__batch_size": 40,
    "data__augment": False,
    "schedule__epochs": 3,
    "schedule__ratio": "1:1",
    "split__cuts": [1],
}
LEFT_OUT = "which no checkpoint keeps"


def run_of(place: Path, net: str, name: str = "run", **changes: Any) -> Run:
    toml = write_toml(place / "c.toml", 2, **{**TWO_STOPS, "model__name": f"tests.checkpoint.oddnets:{net}", **changes})
    return Run(toml, place / name)


@pytest.mark.parametrize(
    ("net", "changes"),
    [
        ("running", {}),
        ("running", {"schedule__microbatches": 2}),
        ("chance", {}),
        ("steps", {}),
        ("skipped", {}),
        ("kinds", {}),
        ("kinds", {"optim__name": "adam"}),
        ("kinds", {"optim__name": "adagrad"}),
    ],
)
def test_stopped_and_continued_it_ends_with_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], net: str, changes: dict[str, Any]
) -> None:
    whole, parts = run_of(tmp_path, net, "whole", **changes), run_of(tmp_path, net, "parts", **changes)
    assert whole.go() == 0
    np.random.seed(7), random.seed(7)  # noqa: NPY002  # a new process has other numbers
    stops = 0
    while (code := parts.go(*STOP_AT_ONCE)) == 75:
        np.random.seed(stops), random.seed(stops)  # noqa: NPY002
        stops += 1
    assert (code, stops) == (0, 2)
    assert weights(parts.folder) == weights(whole.folder)
    for ours, theirs in zip(records(parts.folder), records(whole.folder), strict=True):
        assert (ours["loss"], ours["test_loss"]) == (theirs["loss"], theirs["test_loss"])
    assert LEFT_OUT not in capsys.readouterr().out
    assert cli.main(["evaluate", str(parts.folder), "--config", str(parts.toml)]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("net", ["chance", "skipped"])
def test_the_number_of_stages_changes_no_draw(tmp_path: Path, net: str) -> None:
    changes = {"method__name": "backprop"}
    two, three = run_of(tmp_path, net, "two", **changes), run_of(tmp_path, net, "three", **changes)
    assert two.go() == 0
    assert three.go("--split.cuts", "[1, 2]") == 0
    assert weights(two.folder) == weights(three.folder)


def test_an_evaluation_has_no_part_in_what_other_layers_learn(tmp_path: Path) -> None:
    """It passes training samples through the network to estimate BatchNorm's statistics anew."""
    often, once = run_of(tmp_path, "normed", "often"), run_of(tmp_path, "normed", "once")
    assert often.go() == 0
    assert once.go("--run.evaluate_every", 3) == 0
    assert weights(often.folder) == weights(once.folder)


def test_what_changes_and_is_kept_nowhere_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, "secret")
    assert run.go() == 0
    said = capsys.readouterr().out
    assert said.count(LEFT_OUT) == 1
    assert "training changes 1.1.steps, 1.1.mean, which no checkpoint keeps" in said
    assert "make it a buffer, or return it from get_extra_state" in said


def test_an_evaluation_that_finds_another_loss_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here since the counter of the layer is lost; the weights are those of the run."""
    run = run_of(tmp_path, "secret")
    assert run.go() == 0
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.folder), "--config", str(run.toml)]) == 0
    said = capsys.readouterr().err
    assert "warning: the training loss is" in said
    assert "the run recorded" in said


def test_an_export_has_the_extra_state_as_it_is_and_misses_the_buffers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for net in ("steps", "running"):
        run, out = run_of(tmp_path, net, net), tmp_path / f"{net}.pt"
        assert run.go() == 0
        capsys.readouterr()
        words = ["export", run.folder, "--config", run.toml, "--out", out]
        assert cli.main([str(word) for word in words]) == 0
        said = capsys.readouterr().err
        state = torch.load(out, weights_only=True)
        if net == "steps":
            assert said == ""
            assert state["1.1._extra_state"]["steps"] > 3
            assert state["1.1._extra_state"]["mean"].shape == (2,)
        else:
            assert "1.1.size" in said
            assert "1.1.late" in said
            assert "1.1.mask" not in said
            assert "registered with persistent=False" in said


def test_generators_numbers_and_tensors_are_watched() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count, self.history, self.table = 0, [1.0], np.zeros(2)
            self.chance, self.numpy, self.torch = random.Random(0), np.random.default_rng(0), torch.Generator()
            self.fixed, self.names = torch.ones(2), {"a": (1, 2)}
            self.weight = nn.Parameter(torch.ones(1))
            self.cached: torch.Tensor = self.weight * 2  # made from the weights in every pass

    net = nn.Sequential(Layer(), Secret())
    besides = Besides(net)
    layer: Any = net[0]
    assert besides.attributes() == []
    layer.count += 1
    layer.history.append(2.0)
    layer.table[0] = 1
    layer.chance.random(), layer.numpy.random(), torch.rand(1, generator=layer.torch)
    layer.cached, layer.new = layer.weight * 3, 4
    assert besides.attributes() == [f"0.{name}" for name in ("count", "history", "table", "chance", "numpy", "torch")]
