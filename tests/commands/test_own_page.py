"""docs/own.md: a user's first run with a network and a folder of their own, as the page has it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hpcsplit.cli import main
from tests.engine.small import records, train_here
from tests.wire.launch import ROOT

PAGE = (ROOT / "docs/own.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images and the page's two files, which is the present folder."""
    rng = np.random.default_rng(0)
    for part, size in (("train", 6), ("val", 3)):
        for label, name in enumerate(("daisy", "rose")):
            folder = tmp_path / "flowers" / part / name
            folder.mkdir(parents=True)
            for number in range(size):
                pixels = rng.integers(0, 120, (40, 50, 3), dtype=np.uint8)
                pixels[..., label] += 130
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    (tmp_path / "own.toml").write_text(block("toml"))
    (tmp_path / "mynets.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_first_run_needs_twelve_lines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(block("toml").splitlines()) == 12
    more = ["--data.batch_size", "4", "--schedule.epochs", "3", "--run.stages", "2", "--run.baseline", "false"]
    assert train_here(place / "own.toml", place / "run", *more, "--split.cuts", "flops") == 0
    accuracy = records(place / "run")[-1]["test_accuracy"]
    own = ["--config", "own.toml"]
    assert main(["plan", "own.toml", "--ranks", "2", "--data.batch_size", "4"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", *own, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_accuracy"] == accuracy
    assert main(["predict", "run", "flowers/val", *own]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    assert np.mean([Path(row[0]).parent.name == row[2] for row in rows]) == pytest.approx(accuracy)
    for suffix in (".safetensors", ".pt"):
        assert main(["export", "run", f"net{suffix}", *own]) == 0
        said = capsys.readouterr().out
        scope: dict[str, Any] = {}
        exec(said[said.index("import torch") :], scope)
        assert type(scope["net"]).__name__ == "Small"  # the user's own module, without this program
        assert tuple(scope["y"].shape) == (1, 2)


def test_a_network_of_torchvision_is_exported_by_its_own_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--data.batch_size", "4", "--schedule.epochs", "1", "--run.stages", "2", "--run.baseline", "false"]
    more += ["--model.name", "torchvision:resnet18", "--data.size", "32", "--split.cuts", "flops"]
    assert train_here(place / "own.toml", place / "run", *more) == 0
    capsys.readouterr()
    assert main(["export", "run", "net.pt"]) == 0
    said = capsys.readouterr().out
    assert "layer1.0.conv1.weight" in torch.load("net.pt", weights_only=True)
    scope: dict[str, Any] = {}
    exec(said[said.index("import torch") :], scope)
    assert type(scope["net"]).__name__ == "ResNet"
