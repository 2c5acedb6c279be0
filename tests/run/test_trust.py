"""Whose folders a run goes on in, and what a run directory can make the program do."""

from __future__ import annotations

import ast
import grp
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hpcsplit
from hpcsplit.cli import main
from hpcsplit.errors import ConfigError
from hpcsplit.run import trust
from hpcsplit.run.folder import RunDir
from tests.engine.small import config, train_here, weights, write_toml

REFUSED = 65
NOBODY = 65534
STOP_AT_ONCE = ("--run.time_limit", 1e-6)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
Refusal = Callable[..., str]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c.toml, and run/ after its two epochs."""
    place = tmp_path_factory.mktemp("trust")
    toml = write_toml(place / "c.toml", 1, schedule__epochs=2, schedule__ratio="1:1")
    assert train_here(toml, place / "run") == 0
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


@pytest.fixture
def refusal(place: Path, capfd: pytest.CaptureFixture[str]) -> Refusal:
    """refusal(*overrides): the one sentence with which the run does not go on; it has touched nothing."""

    def go(*overrides: object) -> str:
        before = contents(place)
        capfd.readouterr()
        assert train_here(place / "c.toml", place / "run", *overrides) == REFUSED
        assert contents(place) == before
        said = capfd.readouterr().err
        assert said.count("hpcsplit: ") == 1
        return said

    return go


# ------------------------------------------------------------------------------------------------ another user's


@needs_root
@pytest.mark.parametrize("name", [".", "checkpoints", "log"])
def test_a_folder_of_another_user(place: Path, refusal: Refusal, name: str) -> None:
    folder = place / "run" / name
    os.chown(folder, NOBODY, -1)
    said = refusal()
    assert f"{folder} belongs to " in said
    assert f"(uid {NOBODY}), this run to " in said
    assert "(uid 0); choose another --run-dir, or accept what is there with --take-over" in said
    assert train_here(place / "c.toml", place / "run", "--take-over") == 0


@pytest.mark.parametrize("name", [".", "checkpoints"])
def test_a_folder_that_everybody_may_write(place: Path, refusal: Refusal, name: str) -> None:
    folder = place / "run" / name
    folder.chmod(0o777)
    assert f"{folder} has the permissions 0777, so everybody can change what is in it; chmod o-w" in refusal()
    folder.chmod(0o1777)
    assert train_here(place / "c.toml", place / "run") == 0
    folder.chmod(0o777)
    assert train_here(place / "c.toml", place / "run", "--take-over") == 0


@needs_root
def test_a_link_to_a_folder_of_another_user(place: Path, refusal: Refusal) -> None:
    elsewhere, checkpoints = place / "elsewhere", place / "run" / "checkpoints"
    checkpoints.rename(elsewhere)
    checkpoints.symlink_to(elsewhere)
    assert train_here(place / "c.toml", place / "run", "--follow-links") == 0
    os.chown(elsewhere, NOBODY, -1)
    assert f"{elsewhere} belongs to " in refusal("--follow-links")


@pytest.mark.parametrize(
    "name", ["records.jsonl", "config.toml", "log/rank-000.log", "checkpoints/epoch-0002-step-000000/stage-000.h5"]
)
def test_a_file_that_is_a_link_out_of_the_folder(place: Path, refusal: Refusal, name: str) -> None:
    path, outside = place / "run" / name, place / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    assert f"{path} is a link to {outside}, and links in a run directory are not followed; remove it" in refusal()
    for option in ("--take-over", "--follow-links"):
        assert f"{path} is a link to" in refusal(option)


def test_a_checkpoint_that_is_a_link_out_of_the_folder(place: Path, refusal: Refusal) -> None:
    path, outside = place / "run/checkpoints/epoch-0002-step-000000", place / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    assert f"{path} is a link to {outside}, and links in a run directory are not followed; remove it" in refusal()


@pytest.mark.parametrize("what", ["file", "dangling link"])
def test_a_run_directory_that_is_none(place: Path, refusal: Refusal, what: str) -> None:
    run = place / "run"
    shutil.rmtree(run)
    if what == "file":
        run.write_text("")
    else:
        run.symlink_to("nowhere")
    expected = {
        "file": f"{run} is no folder",
        "dangling link": f"{run} is a link to nowhere, which is absent",
    }
    assert expected[what] in refusal()


# ------------------------------------------------------------------------------------------------ the store


@pytest.fixture
def store(tmp_path: Path) -> tuple[RunDir, Path]:
    """A run directory and its store's folder on a disk that all users share."""
    run = RunDir(tmp_path / "run")
    folder = run.store(str(tmp_path / "shared"))
    assert folder.is_dir()
    return run, folder


def test_a_store_that_everybody_may_write(store: tuple[RunDir, Path], tmp_path: Path) -> None:
    run, folder = store
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=f"{folder} has the permissions 0777.*choose another store.path"):
        run.store(str(tmp_path / "shared"))
    assert RunDir(run.path, take_over=True).store(str(tmp_path / "shared")) == folder


@needs_root
def test_a_store_that_another_user_has_made_before(store: tuple[RunDir, Path], tmp_path: Path) -> None:
    run, folder = store
    os.chown(folder, NOBODY, -1)
    with pytest.raises(ConfigError, match=f"{folder} belongs to .*choose another store.path"):
        run.store(str(tmp_path / "shared"))


def test_a_row_file_that_is_a_link_out_of_the_store(store: tuple[RunDir, Path], tmp_path: Path) -> None:
    run, folder = store
    (folder / "stage-000.lam.0.h5").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match=r"is a link to .*precious, and links in a run"):
        run.store(str(tmp_path / "shared"))


# ------------------------------------------------------------------------------------------------ another run's


def test_epochs_of_another_run_without_a_checkpoint(place: Path, refusal: Refusal) -> None:
    shutil.rmtree(place / "run/checkpoints")
    said = refusal("--optim.lr", 0.5, "--run.seed", 3)
    assert "has 2 finished epochs of a run with another optim and seed: " in said
    assert "optim.lr = 0.05 there, 0.5 here; run.seed = 0 there, 3 here. Change it back" in said
    before = weights(place / "run")
    assert train_here(place / "c.toml", place / "run", "--optim.lr", 0.5, "--take-over") == 0
    assert [w for _, w in weights(place / "run")] != [w for _, w in before]


def test_a_checkpoint_of_another_run_is_said_once_and_not_taken_over(place: Path, refusal: Refusal) -> None:
    assert "was made with another optim" in refusal("--optim.lr", 0.5)
    assert "was made with another optim" in refusal("--optim.lr", 0.5, "--take-over")


# ------------------------------------------------------------------------------------------------ permissions


@pytest.mark.parametrize(("umask", "most"), [(0o000, 0o750), (0o022, 0o750), (0o077, 0o700)])
def test_the_umask_of_the_user_or_a_stricter_one(tmp_path: Path, umask: int, most: int) -> None:
    before = os.umask(umask)
    try:
        toml = write_toml(tmp_path / "c.toml", 2, schedule__epochs=2, schedule__ratio="1:1")
        assert train_here(toml, tmp_path / "a" / "run", "--store.path", tmp_path / "b") == 0
    finally:
        os.umask(before)
    made = [p for top in ("a", "b") for p in (tmp_path / top, *(tmp_path / top).rglob("*")) if not p.is_symlink()]
    assert len(made) > 15
    for path in made:
        assert not stat.S_IMODE(path.stat().st_mode) & ~most, path
        assert path.is_dir() or not path.stat().st_mode & 0o111, path


# ------------------------------------------------------------------------------------------------ code

NO_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
PACKAGE = Path(hpcsplit.__file__).parent


def ways_to_run_code(tree: ast.AST) -> Iterator[str]:
    """What could run code that a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in NO_CODE)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in NO_CODE:
            yield f"from {node.module}"
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec", "compile", "__import__"):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("torch.load", "np.load", "numpy.load", "yaml.load", "runpy.run_path", "jit.load", "hub.load"):
                yield name
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield node.arg


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["import pickle"]),
        ("from yaml import load", ["from yaml"]),
        ("x = torch.load(path)", ["torch.load"]),
        ("eval(text)", ["eval"]),
        ("net.eval()", []),
        ("np.frombuffer(x, allow_pickle=True)", ["allow_pickle"]),
    ],
)
def test_ways_to_run_code_are_seen(source: str, found: list[str]) -> None:
    assert list(ways_to_run_code(ast.parse(source))) == found


def test_no_file_can_run_code() -> None:
    found = {
        str(p.relative_to(PACKAGE)): list(ways_to_run_code(ast.parse(p.read_text()))) for p in PACKAGE.rglob("*.py")
    }
    assert len(found) > 80
    assert {name: ways for name, ways in found.items() if ways} == {
        "data/decode.py": ["import pickle", "np.load", "allow_pickle"],  # which finds none, and allow_pickle=False
        "data/arrays.py": ["np.load", "allow_pickle"] * 2,  # the same
        "data/given.py": ["np.load", "allow_pickle"],  # the same
        "nets/weights.py": ["torch.load"],  # weights_only=True
    }


def test_modules_are_imported_by_name_in_one_place() -> None:
    """What the user's configuration names; the package's own are resolved by its lists (tests/test_dangers.py)."""
    places = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if "import_module" in p.read_text()}
    assert places == {"host/factory.py"}


@pytest.mark.parametrize("command", ["report", "evaluate", "export"])
def test_a_run_directory_cannot_name_code(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    trap = place / "code"
    trap.mkdir()
    (trap / "trapnets.py").write_text("raise SystemExit('sprung')")
    monkeypatch.syspath_prepend(str(trap))
    path = place / "run" / "config.toml"
    text = path.read_text()
    assert text.count('"tests.engine.tinynet:small"') == 1
    path.write_text(text.replace('"tests.engine.tinynet:small"', '"trapnets:small"'))
    words = [command, str(place / "run"), *(["--out", str(place / "w.pt")] if command == "export" else [])]
    if command == "report":
        assert main(words) == 0
    else:
        assert main(words) == REFUSED
        assert 'model.name = "trapnets:small"' in (said := capfd.readouterr().err)
        assert "--config" in said
    assert "trapnets" not in sys.modules


def test_the_trap_would_spring(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcsplit.plan.setting import Setting

    (place / "trapnets.py").write_text("raise ZeroDivisionError('sprung')")
    monkeypatch.syspath_prepend(str(place))
    with pytest.raises(ConfigError, match="sprung"):
        Setting(config(1, model__name="trapnets:small")).network()


# ------------------------------------------------------------------------------------------------ who else can write


@pytest.mark.parametrize(("mode", "who"), [(0o755, ""), (0o775, "by the group"), (0o757, "by everybody"), (0o1777, "")])
def test_a_folder_above_that_others_can_write_is_said(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: int, who: str
) -> None:
    monkeypatch.setattr("hpcsplit.run.trust._group", lambda gid: "students")
    place.chmod(mode)
    assert train_here(place / "c.toml", place / "run") == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "others can change this run" in line]
    assert len(said) == bool(who)
    assert all(f"{place} {who}" in line and "chmod go-w" in line for line in said)


def test_the_group_that_a_user_has_alone_is_nobody_else() -> None:
    own = pwd.getpwuid(os.geteuid())
    assert grp.getgrgid(own.pw_gid).gr_name != own.pw_name or trust._group(own.pw_gid) == ""
    assert trust._group(2**31 - 7) == f"gid {2**31 - 7}"
