"""A run whose network is the user's own code notices when that has changed."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpcsplit import cli
from hpcsplit.files.hdf5 import read_attributes, set_attributes
from tests.checkpoint.conftest import STOP_AT_ONCE, Run
from tests.commands.damage import sign
from tests.engine.small import records, write_toml

NET = """
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x):  # first
        return x + self.lin(x).relu()

def net(input_shape, classes):
    size = input_shape[0] * input_shape[1] * input_shape[2]
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(size, 8)), Block(), nn.Linear(8, classes))
"""
FUNCTION = (".relu()", ".relu() * 0.5")
TEXT = (".relu()", ".clamp(min=0)")
COMMENT = ("# first", "# second")
SMALL = {"data__batch_size": 40, "schedule__epochs": 3, "schedule__ratio": "1:1", "split__cuts": [1]}
Write = Callable[..., None]
Manifest = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """write((old, new), …): the user's module as the next process would import it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def go(*changes: tuple[str, str]) -> None:
        text = NET
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "users_code.py").write_text(text)
        monkeypatch.delitem(sys.modules, "users_code", raising=False)
        importlib.invalidate_caches()

    go()
    return go


@pytest.fixture
def run(tmp_path: Path, write: Write) -> Run:
    """One of three epochs is done."""
    toml = write_toml(tmp_path / "c.toml", 2, **SMALL, model__name="users_code:net")
    begun = Run(toml, tmp_path / "run")
    assert begun.go(*STOP_AT_ONCE) == 75
    return begun


def forget_the_code(run: Run) -> None:
    """Make the checkpoint one of a program that did not look at the code."""
    folder = run.checkpoints / "epoch-0001-step-000000"
    prints = json.loads(read_attributes(folder / "manifest.h5")["fingerprints"])
    assert {prints.pop("function"), prints.pop("source")} != {""}
    set_attributes(folder / "manifest.h5", {"fingerprints": json.dumps(prints)})
    sign(folder)


def test_another_function_is_refused_and_can_be_accepted(
    run: Run, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(FUNCTION)
    before = (run.folder / "records.jsonl").read_bytes()
    assert run.go() == 65
    said = capsys.readouterr().err
    assert "was made with another network: what it computes has changed" in said
    assert "--checkpoint.changed_code accept" in said
    assert (run.folder / "records.jsonl").read_bytes() == before

    assert run.go("--checkpoint.changed_code", "accept", *STOP_AT_ONCE) == 75
    assert "warning: the network computes something else than when epoch-0001-step-000000" in capsys.readouterr().out
    assert run.go() == 0  # the newest checkpoint is one of the new code
    assert "computes something else" not in capsys.readouterr().out
    assert [record["recomputed"] for record in records(run.folder)] == [False] * 3


@pytest.mark.parametrize(("change", "said"), [(TEXT, True), (COMMENT, False)])
def test_another_text_is_said_and_another_comment_is_not(
    run: Run, write: Write, capsys: pytest.CaptureFixture[str], change: tuple[str, str], said: bool
) -> None:
    write(change)
    capsys.readouterr()
    assert run.go() == 0
    assert ("note: the network's source has changed since epoch-0001" in capsys.readouterr().out) == said


def test_a_checkpoint_of_before_goes_on(run: Run, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    forget_the_code(run)
    write(TEXT)
    capsys.readouterr()
    assert run.go() == 0
    said = capsys.readouterr()
    assert "network's source" not in said.out
    assert said.err == ""


def test_a_checkpoint_of_before_knows_the_network_as_it_prints_itself(
    run: Run, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_the_code(run)
    write(("Block(), nn", "nn.Sequential(Block()), nn"))
    assert run.go() == 65
    assert "was made with another network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "warning"), [(FUNCTION, "computes something else"), (TEXT, "source has changed"), (COMMENT, "")]
)
def test_evaluate_and_export_warn(
    run: Run, write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path, change: tuple[str, str], warning: str
) -> None:
    write(change)
    capsys.readouterr()
    for words in (["evaluate", "--json"], ["export", "--out", tmp_path / "net.pt"]):
        command, *options = words
        assert cli.main([str(word) for word in (command, run.folder, "--config", run.toml, *options)]) == 0
        said = capsys.readouterr()
        assert (warning in said.err) if warning else (said.err == "")
        if command == "evaluate":
            json.loads(said.out)
    assert torch.load(tmp_path / "net.pt", weights_only=True)


def test_the_function_is_found_before_the_run_touches_anything(
    run: Run, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(FUNCTION)
    files = {path: path.stat().st_mtime_ns for path in run.checkpoints.rglob("*")}
    assert run.go() == 65
    assert {path: path.stat().st_mtime_ns for path in run.checkpoints.rglob("*")} == files
