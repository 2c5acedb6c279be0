"""`export` writes one file that plain torch, or ONNX, loads, with the outputs of the run, and never over a file."""

from __future__ import annotations

import errno
import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hpcsplit.checkpoint.state import Whole, digest
from hpcsplit.commands import export
from hpcsplit.commands.saved import Saved
from hpcsplit.data.dataset import load
from hpcsplit.files.atomic import sha256_file
from hpcsplit.nets.catalog import build
from tests.commands.conftest import Run
from tests.commands.damage import flip_a_bit, within_an_epoch
from tests.engine.small import records

USAGE, BAD, NO_ROOM, LAUNCH = 64, 65, 73, 77
Command = Callable[..., tuple[int, str, str]]


def plain_network() -> torch.nn.Sequential:
    return build("resnet8", (3, 16, 16), 10)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_plain_torch_takes_it(runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, stages: int) -> None:
    """The exported network, in a loop that knows nothing of stages, has the recorded test loss and accuracy."""
    code, out, err = hpcsplit("export", runs(stages).folder, "--out", tmp_path / "net.pt")
    assert (code, err) == (0, "")
    weights = torch.load(tmp_path / "net.pt", weights_only=True)
    net = plain_network()
    assert list(weights) == list(net.state_dict())
    net.load_state_dict(weights, strict=True)
    last = records(runs(stages).folder)[-1]
    assert digest(net.state_dict()) == last["weights_sha256"]

    data = load("fake", limit_train=100, limit_test=60, pool=True)
    images = (data.test.images.float() / 255 - data.mean.view(1, -1, 1, 1)) / data.std.view(1, -1, 1, 1)
    with torch.no_grad():
        logits = net.eval()(images)
    assert float((logits.argmax(1) == data.test.labels).float().mean()) == pytest.approx(last["test_accuracy"])
    loss = torch.nn.functional.cross_entropy(logits, data.test.labels)
    assert float(loss) == pytest.approx(last["test_loss"], rel=1e-4)

    file = tmp_path / "net.pt"
    assert f"{len(weights)} tensors" in out
    assert f"{file.stat().st_size:,} bytes" in out
    assert "checkpoint epoch-0003-step-000000" in out
    assert f"weights_sha256 {last['weights_sha256']}" in out
    assert sha256_file(file) in out
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]


def test_an_older_checkpoint_and_one_within_an_epoch(copy: Run, hpcsplit: Command, tmp_path: Path) -> None:
    within_an_epoch(copy.newest, 120)
    for name, record in (("epoch-0002-step-000000", 1), ("epoch-0003-step-000120", 2)):
        code, out, _ = hpcsplit("export", copy.folder, "--out", tmp_path / f"{name}.pt", "--checkpoint", name)
        assert code == 0
        assert records(copy.folder)[record]["weights_sha256"] in out
    assert "after 3 epochs and 120 steps of the next" in out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_same_checkpoint_gives_the_same_bytes(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, suffix: str
) -> None:
    """As weights: the metadata of .safetensors are in no order."""
    for name in ("a", "other-name"):
        assert hpcsplit("export", runs(2).folder, "--out", tmp_path / f"{name}{suffix}")[0] == 0
    one, other = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "other-name"))
    assert (one == other) if suffix == ".pt" else (len(one) == len(other))


def used(out: str) -> dict[str, Any]:
    """What the printed lines compute."""
    values: dict[str, Any] = {}
    exec(out.partition("# to load it:\n")[2], values)
    return values


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt2", ".onnx"])
def test_the_printed_lines_load_what_the_run_computes(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, suffix: str
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"net{suffix}"
    code, out, err = hpcsplit("export", runs(2).folder, file)
    assert (code, err) == (0, "")
    reference = plain_network().eval()
    assert hpcsplit("export", runs(2).folder, tmp_path / "reference.pt")[0] == 0
    reference.load_state_dict(torch.load(tmp_path / "reference.pt", weights_only=True))
    data = load("fake", limit_train=100, limit_test=60, pool=True)
    found = used(out)
    y, x, mean, std = (torch.as_tensor(found[name]) for name in ("y", "x", "mean", "std"))
    assert torch.equal(mean.flatten(), data.mean)
    assert torch.equal(std.flatten(), data.std)
    with torch.no_grad():
        assert y.detach().allclose(reference((x - mean) / std), atol=1e-5)
    assert ("are ours: they differ by" in out) == (suffix in (".pt2", ".onnx"))


def test_safetensors_say_what_they_are(runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path) -> None:
    assert hpcsplit("export", runs(2).folder, tmp_path / "net.safetensors")[0] == 0
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        said, names = file.metadata(), set(file.keys())
    data = load("fake", limit_train=100, limit_test=60, pool=True)
    assert names == set(plain_network().state_dict())
    assert (json.loads(said["mean"]), json.loads(said["std"])) == (data.mean.tolist(), data.std.tolist())
    assert json.loads(said["input_shape"]) == [3, 16, 16]
    assert tomllib.loads(said["config"])["model"]["name"] == "resnet8"
    assert said["weights_sha256"] == records(runs(2).folder)[-1]["weights_sha256"]


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_what_computes_something_else_is_not_written(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """As an exporter with a bug would have it: one weight of the file is another one."""
    original = Saved.network

    def changed(self: Saved, whole: Whole) -> torch.nn.Module:
        net = original(self, whole)
        passes = iter(range(9))
        net.register_forward_hook(lambda net, x, y: y + 1e-3 * float(next(passes) > 0))
        return net

    monkeypatch.setattr(Saved, "network", changed)
    monkeypatch.setattr(export, "_not_traced", lambda suffix, error: pytest.fail(str(error)))
    code, out, err = hpcsplit("export", runs(2).folder, tmp_path / f"net{suffix}")
    assert (code, out) == (BAD, "")
    assert "differs from what it computes here by 1.0e-03, so nothing is written" in err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_traced_is_a_sentence(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("data-dependent\nbranch")

    monkeypatch.setattr(torch.export, "export", fail)
    code, _, err = hpcsplit("export", runs(2).folder, tmp_path / "net.pt2")
    assert code == BAD
    assert "the network cannot be written as .pt2 (data-dependent branch); its weights can" in err


def test_a_package_that_is_absent_is_a_sentence(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    code, _, err = hpcsplit("export", runs(2).folder, tmp_path / "net.onnx")
    assert code == BAD
    assert "needs the package onnx: pip install 'hpcsplit[onnx]'" in err


def test_a_suffix_that_says_nothing(runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path) -> None:
    for name in ("net", "net.h5", "net.pt.gz", "net.PT"):
        code, _, err = hpcsplit("export", runs(2).folder, tmp_path / name)
        assert code == USAGE
        assert f"{name}: the suffix says what is written; take one of .safetensors, .pt, .onnx, .pt2" in err
    assert hpcsplit("export", runs(2).folder)[0] == USAGE
    assert hpcsplit("export", runs(2).folder, tmp_path / "a.pt", "--out", tmp_path / "b.pt")[0] == USAGE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_what_is_there_is_not_overwritten(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "net.pt"
    make: dict[str, Callable[[], object]] = {
        "file": lambda: out.write_text("precious"),
        "folder": out.mkdir,
        "dangling link": lambda: out.symlink_to("x"),
    }
    make[kind]()
    code, _, err = hpcsplit("export", runs(2).folder, "--out", out)
    assert code == USAGE
    assert f"{out} is there already" in err
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]
    assert kind != "file" or out.read_text() == "precious"


def test_a_file_that_appears_meanwhile_stays(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, out = torch.save, tmp_path / "net.pt"

    def slow(*args: Any) -> None:
        original(*args)
        out.write_text("precious")

    monkeypatch.setattr(torch, "save", slow)
    code, _, err = hpcsplit("export", runs(2).folder, "--out", out)
    assert code == USAGE
    assert "is there already" in err
    assert out.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]


def test_a_folder_that_is_not_there(runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path) -> None:
    code, _, err = hpcsplit("export", runs(2).folder, "--out", tmp_path / "absent" / "net.pt")
    assert code == USAGE
    assert f"there is no folder {tmp_path / 'absent'}" in err


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("write", errno.ENOSPC, "no space left"),
        ("write", errno.EDQUOT, "the quota is used up"),
        ("write", errno.EFBIG, "too large for its file system"),
        ("fsync", errno.EIO, "check the disk"),
    ],
)
def test_a_full_disk_leaves_nothing(
    runs: Callable[[int], Run],
    hpcsplit: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    words: str,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    folder = runs(2).folder
    monkeypatch.setattr(os, call, fail)
    code, _, err = hpcsplit("export", folder, "--out", tmp_path / "net.pt")
    assert code == NO_ROOM
    assert "net.pt cannot be written" in err
    assert words in err
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_writes_nothing(copy: Run, hpcsplit: Command, tmp_path: Path) -> None:
    flip_a_bit(copy.newest / "stage-001.h5")
    code, _, err = hpcsplit("export", copy.folder, "--out", tmp_path / "net.pt")
    assert code == BAD
    assert "stage-001.h5 does not have the checksum" in err
    assert not (tmp_path / "net.pt").exists()


def test_several_processes_are_refused(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    assert hpcsplit("export", runs(2).folder, "--out", tmp_path / "net.pt")[0] == LAUNCH
    assert not (tmp_path / "net.pt").exists()
