"""A data set, a network, an optimizer, a figure and a method are added to a copy of the package.

All but the method are one file and one line in a list, each; the method is the file that README.md prints.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hpcsplit
from tests.wire.launch import PYTHONPATH

STRIPES = """
import numpy as np
from hpcsplit.data.dataset import Part

def read(spec, root, download):
    def part(size):
        labels = np.arange(size) % 2
        images = np.zeros((size, *spec.shape), np.uint8)
        images[labels == 0, :, ::2] = 255
        images[labels == 1, :, :, ::2] = 255
        return Part.of(images, labels)
    return part(spec.train), part(spec.test)
"""
TWICE = """
from collections import OrderedDict
from torch import nn

def twice(width, input_shape, classes):
    size = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(OrderedDict(
        first=nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU()),
        second=nn.Linear(width, classes),
    ))
"""
SIGN = """
import torch

class Sign(torch.optim.Optimizer):
    def __init__(self, parameters, lr, weight_decay):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=group["lr"])
"""
OVERFIT = """
from hpcsplit.report.curves import curves

panels = curves("nats", [("test less train", lambda record: record.test_loss - record.loss, "-")])
"""
ADDED = {  # the new file, its content, the list, the line before the new one, the new one
    "stripes": (
        "data/stripes.py",
        STRIPES,
        "data/catalog.py",
        "_ALL = (\n",
        '    Spec("stripes", 64, 32, (1, 8, 8), 2, flip=False, reader="hpcsplit.data.stripes:read"),\n',
    ),
    "twice": (
        "nets/twice.py",
        TWICE,
        "nets/catalog.py",
        "NETWORKS = (\n",
        '    Network("twice-W", r"twice-(?P<width>\\d+)", "hpcsplit.nets.twice:twice"),\n',
    ),
    "sign": (
        "sign.py",
        SIGN,
        "config/optimizers.py",
        "OPTIMIZERS = {\n",
        '    "sign": Optimizer("hpcsplit.sign:Sign"),\n',
    ),
    "overfit": (
        "report/overfit.py",
        OVERFIT,
        "report/charts.py",
        "LEARNING = (\n",
        '    Chart("Over-fitting", "It grows not.", "No loss.", "hpcsplit.report.overfit:panels", pictured=True),\n',
    ),
}
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
[METHOD] = re.findall(r"such as this `plain\.py`.*?```python\n(.*?)```", README, re.DOTALL)
RUN = """
[data]
name = "stripes"
batch_size = 16
[model]
name = "twice-8"
[method]
downsample = 1
[schedule]
epochs = 4
[optim]
name = "sign"
lr = 0.01
[run]
runner = "lockstep"
stages = 2
threads = 1
baseline = false
"""
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the copy lies."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "hpcsplit"
    shutil.copytree(Path(hpcsplit.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, catalog, before, line in ADDED.values():
        (package / file).write_text(text)
        old = (package / catalog).read_text()
        assert old.count(before) == 1
        (package / catalog).write_text(old.replace(before, before + line))
    (package / "methods" / "plain.py").write_text(METHOD)
    (folder / "c.toml").write_text(RUN)
    return folder


@pytest.fixture(scope="module")
def command(place: Path) -> Command:
    """Runs the copy in the folder where it lies."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": f"{place}:{PYTHONPATH}"}
        call = [sys.executable, "-m", "hpcsplit", *words]
        return subprocess.run(call, cwd=place, env=environment, capture_output=True, text=True, timeout=200)

    return run


def test_help_lists_them(command: Command) -> None:
    done = command("train", "--help")
    assert "stripes | digits |" in done.stdout
    assert "sign | sgd |" in done.stdout
    assert "twice-W | resnetN" in done.stdout


@pytest.mark.parametrize(("key", "name"), [("data.name", "stripes"), ("optim.name", "sign"), ("model.name", "twice-W")])
def test_a_wrong_name_is_told_of_them(command: Command, key: str, name: str) -> None:
    done = command("plan", "c.toml", f"--{key}", "other")
    assert done.returncode == 65
    assert re.search(f"{key} = ['\"]other['\"] is (not one of|no known data set; choose one of) {name}, ", done.stderr)


@pytest.mark.slow
def test_they_run(command: Command, tmp_path: Path) -> None:
    """Every other line white, in rows or in columns: a small network learns which."""
    done = command("train", "c.toml", "--run-dir", "r")
    assert (done.returncode, done.stderr) == (0, "")
    assert "test accuracy: last 100.00%" in done.stdout
    done = command("evaluate", "r")
    assert done.returncode == 0
    assert "twice-8 on stripes: 64 training samples" in done.stdout
    for out in (tmp_path / "page.html", tmp_path / "curves.svg"):
        done = command("report", "r", "--out", str(out), "--no-mistakes")
        assert (done.returncode, done.stderr) == (0, "")
        assert ">Over-fitting</" in out.read_text()
    page = (tmp_path / "page.html").read_text()
    assert "<title>Over-fitting</title>" in page  # of the drawing
    assert "It grows not." in page
    assert "</svg>test less train</li>" in page


# ------------------------------------------------------------------------------------------------ the method


def test_the_example_of_a_method_is_short() -> None:
    assert len([line for line in METHOD.splitlines() if line.strip()]) <= 40


def test_help_lists_the_method_and_its_option(command: Command) -> None:
    title = '[method]  name = "plain": Quadratic penalty on the mismatch at every stage boundary.'
    assert (
        f"{title}\n  beta             penalty coefficient β (default 0.1, > 0)\n" in command("train", "--help").stdout
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method.name", "plan"], "method.name = 'plan' is not one of .*, plain; did you mean plain"),
        (["--method.name", "plain", "--method.beta", "0"], "method.beta = 0.0 must be greater than 0.0"),
        (["--method.name", "plain", "--method.visits", "2"], "method.visits; it belongs to chunked"),
    ],
)
def test_the_checks_know_the_method(command: Command, words: list[str], said: str) -> None:
    done = command("plan", "c.toml", *words)
    assert done.returncode == 65
    assert re.search(said, done.stderr), done.stderr


def test_the_method_trains(command: Command, place: Path) -> None:
    words = ["--run-dir", "m", "--method.name", "plain", "--optim.name", "sgd", "--optim.lr", "0.1"]
    words += ["--model.name", "mlp", "--model.depth", "2", "--model.width", "8"]
    done = command("train", "c.toml", *words, "--schedule.ratio", "1:1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "test accuracy: last 100.00%" in done.stdout
    records = [json.loads(line) for line in (place / "m" / "records.jsonl").read_text().splitlines()]
    signals = [record["stages"][0]["label_signal"] for record in records if record["phase"] == "parallel"]
    assert len(signals) == 2
    assert min(signals) > 0.5  # λ has brought the label to the first stage
    assert all(record["beta"] == 0.1 for record in records if record["phase"] == "parallel")
