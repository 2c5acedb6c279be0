"""Weights of a file: of torchvision's names and of ours, in both formats; what does not fit is said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import models

from hpcsplit.cli import main
from hpcsplit.config import resolve
from hpcsplit.errors import ConfigError
from hpcsplit.nets.catalog import build
from hpcsplit.nets.weights import random_head

NAME, IMAGE, CLASSES = "torchvision:resnet18", (3, 32, 32), 5


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    torch.manual_seed(11)
    return dict(models.resnet18(num_classes=CLASSES).state_dict())


def safetensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Written by the description of the format."""
    header, blobs, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, t in tensors.items():
        kind = {torch.float32: "F32", torch.int64: "I64"}[t.dtype]
        blobs.append(np.ascontiguousarray(t.numpy()).tobytes())
        header[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [end, end := end + len(blobs[-1])]}  # type: ignore[dict-item]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("names", ["torchvision's", "ours"])
def test_weights_of_a_file(tmp_path: Path, theirs: dict[str, Tensor], suffix: str, names: str) -> None:
    file = tmp_path / f"w{suffix}"
    torch.manual_seed(11)
    known = theirs if names != "ours" else dict(build(NAME, IMAGE, CLASSES).state_dict())
    safetensors(file, known) if suffix == ".safetensors" else torch.save(known, file)
    net = build(NAME, IMAGE, CLASSES, weights=str(file))
    module = models.resnet18(num_classes=CLASSES)
    module.load_state_dict(theirs)
    x = torch.randn(2, *IMAGE)
    assert torch.equal(net.eval()(x), module.eval()(x))
    assert random_head(str(file), net) == ""


def test_a_head_of_other_classes_stays_random(tmp_path: Path, theirs: dict[str, Tensor]) -> None:
    file = tmp_path / "w.pth"
    torch.save(theirs, file)
    torch.manual_seed(2)
    net = build(NAME, IMAGE, 3, weights=str(file))
    torch.manual_seed(2)
    head = models.resnet18(num_classes=3).fc.weight
    assert torch.equal(net.state_dict()["fc.weight"], head)
    assert torch.equal(net.state_dict()["layer4_0.conv2.weight"], theirs["layer4.0.conv2.weight"])
    said = random_head(str(file), net)
    assert said == f'note: model.weights = "{file}" has 5 classes, so the last layer, of 3, begins random'


def test_networks_of_the_program(tmp_path: Path) -> None:
    file, first = tmp_path / "w.pt", build("resnet8", IMAGE, CLASSES)
    torch.save(first.state_dict(), file)
    second = build("resnet8", IMAGE, CLASSES, weights=str(file))
    assert all(torch.equal(t, second.state_dict()[name]) for name, t in first.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer1.0.conv1.weight": None}, "is not of this network: it has no layer1.0.conv1.weight"),
        ({"more": torch.ones(2)}, "it has more, which the network has not"),
        (
            {"conv1.weight": torch.ones(64, 1, 7, 7)},
            r"conv1.weight has the shape \(64, 1, 7, 7\) there and \(64, 3, 7, 7\) here",
        ),
        ({"fc.weight": torch.ones(7, 100)}, r"fc.weight has the shape \(7, 100\) there and \(5, 512\) here"),
    ],
)
def test_what_does_not_fit_is_said(
    tmp_path: Path, theirs: dict[str, Tensor], change: dict[str, Tensor | None], words: str
) -> None:
    file = tmp_path / "w.pth"
    torch.save({name: t for name, t in {**theirs, **change}.items() if t is not None}, file)
    with pytest.raises(ConfigError, match=words):
        build(NAME, IMAGE, CLASSES, weights=str(file))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent.pth", None, "cannot be read: No such file or directory"),
        ("w.pth", b"no weights", "is no .safetensors file and no state dict of torch.save"),
        ("w.safetensors", b"no weights", "is no .safetensors file and no state dict"),
        ("w.safetensors", b"", "is no .safetensors file and no state dict"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"^model.weights = .*{words}"):
        build("mlp", (4,), 2, weights=str(tmp_path / name))


def test_a_whole_network_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=re.escape("save net.state_dict(), not the network")):
        build("mlp", (4,), 2, weights=str(tmp_path / "net.pt"))


def test_where_the_weights_came_from_is_not_what_a_run_is(tmp_path: Path) -> None:
    """The file may be moved when a run goes on."""
    a, b = (resolve({"model": {"weights": text}}).fingerprint() for text in ("", "somewhere.pth"))
    assert a == b


def test_a_run_begins_with_them_and_is_evaluated_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, toml, run = tmp_path / "w.pt", tmp_path / "c.toml", tmp_path / "run"
    torch.manual_seed(8)
    weights = build("mlp", (1, 32, 32), 7, depth=2, width=8).state_dict()
    torch.save(weights, file)
    toml.write_text(
        f"""
        [data]
        name = "digits"
        limit_train = 8
        limit_test = 8
        batch_size = 8
        [model]
        name = "mlp"
        depth = 2
        width = 8
        weights = "{file}"
        [schedule]
        epochs = 1
        [optim]
        lr = 1e-30
        weight_decay = 0.0
        [run]
        runner = "lockstep"
        stages = 2
        baseline = false
        """
    )
    assert main(["plan", str(toml), "--ranks", "2"]) == 0
    assert "has 7 classes, so the last layer, of 10, begins random" in capsys.readouterr().out
    assert main(["train", str(toml), "--run-dir", str(run)]) == 0
    assert "has 7 classes, so the last layer, of 10, begins random" in capsys.readouterr().out
    file.unlink()
    assert main(["export", str(run), "--out", str(tmp_path / "out.pt")]) == 0
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(out["hidden2.0.weight"], weights["hidden2.0.weight"])
    assert out["head.weight"].shape == (10, 8)
