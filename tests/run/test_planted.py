"""Links, pipes and folders planted at every name of a run directory: refused in a sentence, or cleared away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcsplit.cli import main
from tests.engine.small import train_here, weights, write_toml

REFUSED = 65
SECRET = "-----BEGIN PRIVATE KEY-----"
NEWEST = "checkpoints/epoch-0003-step-000000"
FILES = [
    *("config.toml", "records.jsonl", "provenance.json", "split.json", "forecast.json", "summary.txt", "curves.png"),
    *("lock", "log/rank-000.log", "log/rank-000.sign", "tensorboard/events.out.tfevents.1", "aux/block-003.lam.0.h5"),
    *(f"{NEWEST}/{name}" for name in ("SHA256SUMS", "manifest.h5", "stage-000.h5")),
]
FOLDERS = ["checkpoints", "log", "aux", "tensorboard", NEWEST]
LEFT_OVER = [
    *("records.jsonl.tmp", f".records.jsonl.{os.getpid()}.tmp", ".config.toml.4711.tmp", ".provenance.json.7.tmp"),
    *(".split.json.1.tmp", ".forecast.json.1.tmp", ".summary.txt.1.tmp", ".curves.png.1.tmp", ".lock.0123abcd.now"),
    *("checkpoints/.latest.4711.tmp", "checkpoints/epoch-0009-step-000000.tmp"),
]


def plant(path: Path, kind: str, outside: Path) -> None:
    """Something else in place of what is at `path`."""
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match kind:
        case "link":
            path.symlink_to(outside)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c.toml, and run/ after three epochs of two stages, with the rows of one more checkpoint."""
    place = tmp_path_factory.mktemp("planted")
    built_in = {"model__name": "resnet8", "data__pool": True, "schedule__epochs": 3, "schedule__ratio": "1:1"}
    toml = write_toml(place / "c.toml", 2, **{**built_in, "split__cuts": [3]})
    assert train_here(toml, place / "run") == 0
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy" / "run"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "id_rsa"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A folder of the user's with files of all kinds of names."""
    folder = tmp_path / "full"
    (folder / "precious.tmp").mkdir(parents=True)
    for name in ("letter.tmp", "events.out.tfevents.1", "block-001.lam.0.h5", "rank-000.log", "stage-000.h5"):
        (folder / name).write_text(SECRET)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def refused(run: Path, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    capfd.readouterr()
    assert train_here(run.parent / "c.toml", run, *options) == REFUSED
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert SECRET not in said
    return said


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, kind) for name in FILES for kind in ("link", "pipe")), ("records.jsonl", "folder")]
)
def test_a_file(run: Path, key: Path, capfd: pytest.CaptureFixture[str], name: str, kind: str) -> None:
    plant(run / name, kind, key)
    said = refused(run, capfd)
    assert f"{run / name} is a {kind}" in said
    assert "; remove it" in said
    assert contents(key.parent) == {"id_rsa": SECRET.encode()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder(run: Path, full: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    before = contents(full)
    plant(run / name, "link", full)
    assert f"{run / name} is a link to {full}" in (said := refused(run, capfd))
    assert ("--follow-links" in said) == (name != NEWEST)
    assert contents(full) == before


@pytest.mark.parametrize("kind", ["link", "pipe", "file"])
def test_what_a_killed_start_left_over(run: Path, key: Path, full: Path, kind: str) -> None:
    """The next start clears it away; what looks like it stays."""
    before, precious = contents(full), run / "checkpoints" / "mine.tmp"
    precious.mkdir()
    for name in LEFT_OVER:
        plant(run / name, kind, full if name.startswith("checkpoints/epoch") else key)
        if kind == "file":
            (run / name).write_text("half")
    (run / ".notes.1.tmp").write_text("mine")
    shutil.rmtree(run / NEWEST)
    assert train_here(run.parent / "c.toml", run) == 0
    assert [name for name in LEFT_OVER if os.path.lexists(run / name)] == []
    assert precious.is_dir()
    assert (run / ".notes.1.tmp").exists()
    assert contents(full) == before
    assert key.read_text() == SECRET


@pytest.mark.parametrize("name", ["checkpoints", "aux", "log", "tensorboard"])
def test_folders_on_another_disk_with_the_option(run: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "scratch"
    if (run / name).exists():
        (run / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (run / name).symlink_to(elsewhere)
    shutil.rmtree((run / NEWEST).resolve())
    before = weights(run)
    assert train_here(run.parent / "c.toml", run, "--follow-links", "--run.tensorboard", "true") == 0
    assert weights(run) == before
    assert (run / name).is_symlink()
    assert (run / NEWEST / "SHA256SUMS").exists()
    assert list((run / "tensorboard").glob("events*"))
    assert main(["evaluate", str(run), *(["--follow-links"] if name == "checkpoints" else [])]) == 0


def test_a_run_directory_and_a_store_behind_links_of_the_users_own(run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(run.parent)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "disk").symlink_to(tmp_path / "scratch")
    shutil.rmtree(run / NEWEST)
    toml, through = run.parent / "c.toml", tmp_path / "runs" / "run"
    assert train_here(toml, through, "--store.path", tmp_path / "disk") == 0
    assert (run / NEWEST).is_dir()
    assert list((tmp_path / "scratch").glob("run-*/block-003.lam.0.h5"))
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    assert main(["report", str(through), "--no-mistakes", "--out", str(tmp_path / "out" / "page.html")]) == 0
    assert main(["export", str(through), "--out", str(tmp_path / "out" / "w.pt")]) == 0


# ------------------------------------------------------------------------------------------------ commands that look

LOOKS: dict[str, Callable[[Path], list[str]]] = {
    "report": lambda out: ["--out", str(out / "page.html")],
    "evaluate": lambda out: [],
    "export": lambda out: ["--out", str(out / "w.pt")],
}
LOOKED_AT = {
    "report": ["records.jsonl", "summary.txt", "provenance.json", "forecast.json", "config.toml"],
    "evaluate": ["records.jsonl"],
    "export": [],
}
OF_CHECKPOINTS = [
    "checkpoints",
    NEWEST,
    *(f"{NEWEST}/{name}" for name in ("SHA256SUMS", "manifest.h5", "stage-000.h5")),
]


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        *((command, name) for command, names in LOOKED_AT.items() for name in names),
        *((command, name) for command in ("evaluate", "export") for name in OF_CHECKPOINTS),
    ],
)
def test_commands_that_look(
    run: Path, key: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, name: str, kind: str
) -> None:
    plant(run / name, kind, key)
    code = main([command, str(run), *LOOKS[command](tmp_path)])
    said = capfd.readouterr()
    page = tmp_path / "page.html"
    if name == "config.toml":  # the page is there, and says so
        assert code == 0
        assert f"{run / name} is a {kind}" in page.read_text()
    else:
        assert code == REFUSED
        assert f"{run / name} is a {kind}" in said.err
        assert not page.exists()
    everything = said.out + said.err + (page.read_text() if page.exists() else "")
    assert SECRET not in everything
    assert "Traceback" not in everything
