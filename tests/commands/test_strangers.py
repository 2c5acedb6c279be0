"""A planted run directory: what it says makes no command read, fetch, make or run anything outside of it."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcsplit.data import vision
from hpcsplit.data.catalog import SPECS
from tests.commands.conftest import Run
from tests.engine.small import train_here

Command = Callable[..., tuple[int, str, str]]
BAD, SAMPLES = 65, 100


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.fixture(scope="module")
def small_cifar() -> Iterator[None]:
    """CIFAR-10 of 100 images in two files without checksums, as for somebody who exchanges them at the right moment."""
    from torchvision import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HPCSPLIT_DATA", raising=False)
        patch.setitem(SPECS, "cifar10", replace(SPECS["cifar10"], train=SAMPLES, test=SAMPLES))
        patch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
        patch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
        yield


def write_cifar(root: Path, evil: Path | None = None) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, file in enumerate(("data_batch_1", "test_batch")):
        images = np.random.default_rng(number).integers(0, 256, (SAMPLES, 3072), np.uint8)
        entry = {"data": images, "labels": [k % 10 for k in range(SAMPLES)]}
        (folder / file).write_bytes(pickle.dumps(entry | {"batch_label": Evil(evil)} if evil else entry))
    return root


def change(run: Run, **values: str) -> None:
    """Let the run directory's own configuration say something else."""
    path = run.folder / "config.toml"
    lines = path.read_text().splitlines()
    section = ""
    for number, line in enumerate(lines):
        section = line.strip("[]") if line.startswith("[") else section
        key = f"{section}__{line.split(' = ')[0]}"
        if key in values:
            lines[number] = f"{line.split(' = ')[0]} = {values.pop(key)}"
    assert not values
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def trained(small_cifar: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on CIFAR-10, with the data in "mine" beside it."""
    place = tmp_path_factory.mktemp("cifar")
    write_cifar(place / "mine")
    toml = place / "c.toml"
    toml.write_text(
        f'[data]\nname = "cifar10"\nroot = "{place}/mine"\neval_train = 50\nbatch_size = 50\npool = true\n[model]\n'
        'name = "resnet8"\n[method]\nname = "backprop"\n[schedule]\nepochs = 1\n[run]\nthreads = 1\ndevice = "cpu"\n'
        "baseline = false\n"
    )
    run = Run(toml, place / "run")
    assert train_here(toml, run.folder) == 0
    return run


@pytest.fixture
def cifar_run(trained: Run, tmp_path: Path) -> Run:
    """A copy in `tmp_path`, its data included."""
    shutil.copytree(trained.folder.parent, tmp_path, symlinks=True, dirs_exist_ok=True)
    run = Run(tmp_path / "c.toml", tmp_path / "run")
    for path in (run.toml, run.folder / "config.toml"):
        path.write_text(path.read_text().replace(f"{trained.folder.parent}/mine", f"{tmp_path}/mine"))
    return run


def commands(run: Run, out: Path) -> list[list[object]]:
    return [
        ["evaluate", run.folder],
        ["report", run.folder, "--out", out / "page.html"],
        ["export", run.folder, "--out", out / "weights.pt"],
        ["plan", run.folder / "config.toml", "--ranks", "2"],
        ["plan", run.toml, "--ranks", "2", "--run-dir", run.folder],
    ]


def test_data_are_not_read_from_where_a_run_directory_says(
    cifar_run: Run, tmp_path: Path, hpcsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, out = tmp_path / "marker", tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    planted = write_cifar(tmp_path / "planted", marker)
    change(cifar_run, data__root=f'"{planted}"', data__download="true", store__path=f'"{tmp_path}/store"')
    opened: list[str] = []
    monkeypatch.setattr(vision, "_download", lambda *_: pytest.fail("something was downloaded"))
    monkeypatch.setattr("hpcsplit.data.decode.content", lambda path, md5=None: opened.append(str(path)))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for words in commands(cifar_run, out):
        code, _, err = hpcsplit(*words)
        assert code == (BAD if words[0] == "evaluate" else 0)
        if words[0] == "evaluate":
            assert "cifar10 is not there" in err
            assert f"add --data.root {planted}" in err
            assert err.count("\n") == 1
    assert opened == []
    assert not marker.exists()
    made = {str(out / name) for name in ("page.html", "weights.pt")}
    assert set(map(str, tmp_path.rglob("*"))) - set(before) == made
    assert f"add --data.root {planted}" in (out / "page.html").read_text()


def test_a_pickle_does_not_run_even_where_the_user_says_so(cifar_run: Run, tmp_path: Path, hpcsplit: Command) -> None:
    """A user may be talked into a folder."""
    marker = tmp_path / "marker"
    planted = write_cifar(tmp_path / "planted", marker)
    code, _, err = hpcsplit("evaluate", cifar_run.folder, "--data.root", planted)
    assert code == BAD
    assert "names io.open" in err
    page = tmp_path / "page.html"
    assert hpcsplit("report", cifar_run.folder, "--out", page, "--data.root", planted)[0] == 0
    assert "names io.open" in page.read_text()
    assert not marker.exists()


def test_option_configuration_and_variable_say_where_data_are(
    cifar_run: Run, tmp_path: Path, hpcsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = hpcsplit("evaluate", cifar_run.folder, "--data.root", tmp_path / "mine", "--json")
    assert wanted[0] == 0
    assert hpcsplit("evaluate", cifar_run.folder, "--config", cifar_run.toml, "--json") == wanted
    page = tmp_path / "page.html"
    assert hpcsplit("report", cifar_run.folder, "--out", page, "--data.root", tmp_path / "mine")[0] == 0
    assert f"of {SAMPLES} test samples are right" in page.read_text()
    monkeypatch.setenv("HPCSPLIT_DATA", str(tmp_path / "mine"))
    assert hpcsplit("evaluate", cifar_run.folder, "--json") == wanted
    monkeypatch.delenv("HPCSPLIT_DATA")
    write_cifar(tmp_path / "here" / "data")
    monkeypatch.chdir(tmp_path / "here")
    assert hpcsplit("evaluate", cifar_run.folder, "--json") == wanted


@pytest.mark.parametrize("place", ["path", "folder"])
def test_no_module_is_imported_on_the_word_of_a_run_directory(
    copy: Run, tmp_path: Path, hpcsplit: Command, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Not even when it lies where Python looks for modules, as in the current folder."""
    marker = tmp_path / "marker"
    monkeypatch.delitem(sys.modules, "planted_nets", raising=False)
    home = copy.folder if place == "folder" else tmp_path
    (home / "planted_nets.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    change(copy, model__name='"planted_nets:net"')
    for words in commands(copy, tmp_path):
        code, _, err = hpcsplit(*words)
        refused = words[0] in ("evaluate", "export") or words[1] == copy.folder / "config.toml"
        assert code == (BAD if refused else 0), words
        assert not refused or "names code to be run, which is not taken from a run directory" in err
    assert not marker.exists()
    code, _, err = hpcsplit("simulate", copy.folder / "config.toml", "--ranks", "2")
    assert (code, marker.exists()) == (BAD, False)
    code, _, err = hpcsplit("plan", copy.folder / "config.toml", "--model.name", "planted_nets:net", "--ranks", "2")
    assert marker.exists()
    assert "has no function net" in err


def test_predictions_neither_read_data_nor_run_code(
    copy: Run, tmp_path: Path, hpcsplit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    monkeypatch.delitem(sys.modules, "planted_nets", raising=False)
    (tmp_path / "planted_nets.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.uint8))
    (tmp_path / "evil.npy").write_bytes(np.lib.format.magic(1, 0) + pickle.dumps(Evil(marker)))
    change(copy, data__root=f'"{tmp_path}/absent"', data__download="true", store__path=f'"{tmp_path}/store"')
    assert hpcsplit("predict", copy.folder, tmp_path / "x.npy")[0] == 0
    assert hpcsplit("predict", copy.folder, tmp_path / "evil.npy")[0] == BAD
    change(copy, model__name='"planted_nets:net"')
    code, _, err = hpcsplit("predict", copy.folder, tmp_path / "x.npy")
    assert (code, marker.exists()) == (BAD, False)
    assert "names code to be run, which is not taken from a run directory" in err
    assert not (tmp_path / "store").exists()


def test_a_pipe_in_the_place_of_data_does_not_hang(cifar_run: Run, tmp_path: Path, hpcsplit: Command) -> None:
    path = tmp_path / "mine" / "cifar-10-batches-py" / "test_batch"
    path.unlink()
    os.mkfifo(path)
    code, _, err = hpcsplit("evaluate", cifar_run.folder, "--config", cifar_run.toml)
    assert code == BAD
    assert "test_batch is not there, or no file" in err
