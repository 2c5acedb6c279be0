"""`report` on real run directories: the page with the mistakes of the network, numbers, pictures, refusals."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcsplit.commands.evaluate import examples_of
from hpcsplit.data.dataset import load
from hpcsplit.nets.catalog import build
from hpcsplit.report.examples import Mistakes, Reconstructions
from hpcsplit.run.folder import RunDir
from tests.commands.conftest import Run, finished
from tests.commands.damage import flip_a_bit
from tests.engine.small import records
from tests.report.reading import Reader

USAGE, BAD = 64, 65
Command = Callable[..., tuple[int, str, str]]


def written(hpcsplit: Command, out: Path, *words: object) -> str:
    code, said, err = hpcsplit("report", *words, "--out", out)
    assert (code, err) == (0, "")
    assert said.endswith(f": {out}\n")
    return out.read_text(encoding="utf-8")


def test_the_mistakes_are_those_of_the_whole_network(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path
) -> None:
    """Against the exported weights in plain torch, counted pair by pair."""
    assert hpcsplit("export", runs(2).folder, "--out", tmp_path / "net.pt")[0] == 0
    net = build("resnet8", (3, 16, 16), 10).eval()
    net.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    data = load("fake", limit_train=100, limit_test=60, pool=True)
    images = (data.test.images.float() / 255 - data.mean.view(1, -1, 1, 1)) / data.std.view(1, -1, 1, 1)
    with torch.no_grad():
        logits = net(images)
    loss = torch.nn.functional.cross_entropy(logits, data.test.labels, reduction="none")
    predicted, labels = logits.argmax(1), data.test.labels

    found = examples_of(RunDir(runs(2).folder))
    assert isinstance(found, Mistakes)
    pairs = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    assert found.confusion.tolist() == [[pairs[label, answer] for answer in range(10)] for label in range(10)]
    assert np.trace(found.confusion) / 60 == pytest.approx(records(runs(2).folder)[-1]["test_accuracy"])
    wrong = sorted((k for k in range(60) if predicted[k] != labels[k]), key=lambda k: -loss[k])
    assert [one.sample for one in found.worst] == wrong[:12]
    for one in found.worst:
        assert (one.label, one.predicted) == (int(labels[one.sample]), int(predicted[one.sample]))
        assert one.loss == pytest.approx(float(loss[one.sample]), rel=1e-4)
        assert one.chance == pytest.approx(float(logits[one.sample].softmax(0).max()), rel=1e-4)
        assert (one.image == data.test.images[one.sample].permute(1, 2, 0).numpy()).all()


def test_reconstructions_are_those_of_the_whole_network(hpcsplit: Command, tmp_path: Path) -> None:
    """Against the exported weights in plain torch."""
    vae = {"model__name": "resnet8-vae", "model__task": "generation", "optim__clip": 1.0, "optim__lr": 0.01}
    run = finished(tmp_path, 2, **vae)
    assert hpcsplit("export", run.folder, "--out", tmp_path / "net.pt")[0] == 0
    net = build("resnet8-vae", (3, 16, 16), 10).eval()
    net.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    data = load("fake", limit_train=100, limit_test=60, pool=True)
    mean, std = data.mean.view(1, -1, 1, 1), data.std.view(1, -1, 1, 1)
    images = (data.test.images.float() / 255 - mean) / std
    with torch.no_grad():
        made = net(images)[:12, : 3 * 16 * 16].view(12, 3, 16, 16)
    found = examples_of(RunDir(run.folder))
    assert isinstance(found, Reconstructions)
    assert found.loss == pytest.approx(((made - images[:12]) ** 2).mean(dim=(1, 2, 3)).tolist(), rel=1e-4)
    for k, (image, picture) in enumerate(found.pairs):
        assert (image == data.test.images[k].permute(1, 2, 0).numpy()).all()
        wanted = (255 * (made[k] * std[0] + mean[0])).clamp(0, 255).permute(1, 2, 0).numpy()
        assert np.abs(picture - wanted).max() <= 1.0
    reader = Reader(written(hpcsplit, tmp_path / "page.html", run.folder))
    assert "The first test images, below each its reconstruction" in reader.text
    assert sum(name == "img" for name, _ in reader.elements) == 24


def test_a_page_of_two_runs(runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path) -> None:
    """Both folders are called "run": the page and the table tell them apart."""
    text = written(hpcsplit, tmp_path / "page.html", runs(2).folder, runs(3).folder)
    reader = Reader(text)
    names = [f"{runs(k).folder.parent.name}/run" for k in (2, 3)]
    assert all(reader.text.count(name) > 4 for name in names)
    assert "of 60 test samples are right" in reader.text
    assert "resnet8" in reader.text  # from the configuration
    assert "hpcsplit: resnet8" not in reader.text
    assert "speed-up of the parallel epochs" in reader.text  # from the closing table
    [address] = [a["href"] for name, a in reader.elements if a.get("download")]
    table = base64.b64decode(address.partition("base64,")[2]).decode()
    assert table == written(hpcsplit, tmp_path / "numbers.csv", runs(2).folder, runs(3).folder)
    rows = list(csv.DictReader(io.StringIO(table)))
    expected = [r for k in (2, 3) for r in records(runs(k).folder)]
    assert [float(row["test_loss"]) for row in rows] == [r["test_loss"] for r in expected]
    assert [int(row["stage0.peak_rss_bytes"]) for row in rows] == [r["stages"][0]["peak_rss_bytes"] for r in expected]


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_suffix_decides(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, suffix: str, begins: bytes
) -> None:
    out = tmp_path / f"curves.{suffix}"
    assert hpcsplit("report", runs(2).folder, "--out", out)[0] == 0
    assert out.read_bytes().startswith(begins)


def test_names_that_mean_something_elsewhere(copy: Run, hpcsplit: Command, tmp_path: Path) -> None:
    strange = copy.folder.rename(copy.folder.with_name("<script>a$x^$[red]"))
    reader = Reader(written(hpcsplit, tmp_path / "page.html", strange, "--no-mistakes"))
    assert reader.count("script") == 0
    assert reader.text.count(strange.name) > 2
    assert hpcsplit("report", strange, "--out", tmp_path / "curves.png")[0] == 0
    assert strange.name in hpcsplit("report", strange)[1]


def test_a_name_that_is_no_utf_8(copy: Run, hpcsplit: Command, tmp_path: Path) -> None:
    strange = copy.folder.rename(copy.folder.with_name("caf\udce9"))
    assert "caf\\udce9" in written(hpcsplit, tmp_path / "page.html", strange, "--no-mistakes")
    assert "caf\\udce9" in written(hpcsplit, tmp_path / "numbers.csv", strange)


def test_a_run_is_taken_once(runs: Callable[[int], Run], hpcsplit: Command) -> None:
    folder = runs(2).folder
    _, out, _ = hpcsplit("report", folder, f"{folder}/", folder / ".." / "run")
    assert len(re.findall(r"^\| run ", out, re.MULTILINE)) == 2  # the heading and one line


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("checkpoints", "has no complete checkpoint"),
        ("config.toml", "cannot read"),
        ("provenance.json", "nothing is known of its starts"),
        ("summary.txt", "not printed its closing table"),
    ],
)
def test_what_a_run_directory_lacks_is_a_sentence(
    copy: Run, hpcsplit: Command, tmp_path: Path, gone: str, sentence: str
) -> None:
    path = copy.folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    reader = Reader(written(hpcsplit, tmp_path / "page.html", copy.folder))
    assert sentence in reader.text
    assert "Traceback" not in reader.text


def test_a_damaged_checkpoint_and_a_network_that_is_left_out(copy: Run, hpcsplit: Command, tmp_path: Path) -> None:
    flip_a_bit(copy.newest / "stage-000.h5")
    assert "does not have the checksum" in Reader(written(hpcsplit, tmp_path / "a.html", copy.folder)).text
    text = Reader(written(hpcsplit, tmp_path / "b.html", copy.folder, "--no-mistakes")).text
    assert "Left out by --no-mistakes." in text
    assert "checksum" not in text


def test_code_of_the_users_is_not_run(copy: Run, hpcsplit: Command, tmp_path: Path) -> None:
    config = copy.folder / "config.toml"
    config.write_text(config.read_text().replace('"resnet8"', '"absent_nets:small"'))
    text = Reader(written(hpcsplit, tmp_path / "page.html", copy.folder)).text
    assert 'model.name = "absent_nets:small" is code of the user\'s' in text


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("page.docx", "must end in .html, .csv, .png, .pdf or .svg"),
        ("page", "must end in"),
        ("absent/page.html", "there is no folder"),
        ("folder.html", "is a folder"),
    ],
)
def test_an_out_that_cannot_be(
    runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path, out: str, sentence: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    code, said, err = hpcsplit("report", runs(2).folder, "--out", tmp_path / out)
    assert (code, said) == (USAGE, "")
    assert sentence in err
    assert str(tmp_path / out) in err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_folders_that_are_no_runs(copy: Run, hpcsplit: Command, tmp_path: Path) -> None:
    (tmp_path / "a" / "records.jsonl").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    for folder, sentence in (
        (tmp_path / "a", "records.jsonl is a folder, no regular file"),
        (tmp_path / "b", "is no run directory with a finished epoch"),
        (tmp_path / "absent", "is no run directory with a finished epoch"),
    ):
        code, out, err = hpcsplit("report", folder, "--out", tmp_path / "page.html")
        assert (code, out) == (BAD, "")
        assert sentence in err
        assert str(folder) in err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "line", ["rubbish", '{"epoch": 0, "phase": "serial", "loss": "high"}', '{"epoch": 0, "phase": "odd"}']
)
def test_damaged_records_are_named(copy: Run, hpcsplit: Command, tmp_path: Path, line: str) -> None:
    path = copy.folder / "records.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    code, _, err = hpcsplit("report", copy.folder, "--out", tmp_path / "page.html")
    assert code == BAD
    assert f"{path}, record 1 of 4 is" in err
    assert "remove it" in err


def test_runs_with_other_test_images(copy: Run, runs: Callable[[int], Run], hpcsplit: Command, tmp_path: Path) -> None:
    config = copy.folder / "config.toml"
    config.write_text(config.read_text().replace('name = "fake"', 'name = "cifar10"'))
    code, _, err = hpcsplit("report", runs(2).folder, copy.folder, "--out", tmp_path / "page.html")
    assert code == BAD
    assert "different test sets" in err
    assert "on fake (the first 60 test samples)" in err
    assert "on cifar10" in err
