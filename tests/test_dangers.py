"""What the program never does to a file or a word that may be somebody else's, beside what bandit looks for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hpcsplit"

# calls that run, load or fill in what they are given -> where they may stand, and why nothing strange gets there
LOADING: dict[str, dict[str, str]] = {
    "import_module": {
        "assemble.py": "a method of this program, by its declaration",
        "nets/custom.py": "the user's own network, which no run directory names",
    },
    "expandvars": {
        "data/vision.py": "data.root, which is the user's",
        "rundir/folder.py": "store.path of a run that is started",
    },
    "Unpickler": {"data/decode.py": "it finds no class that a pickle names"},
    "loadmat": {"data/decode.py": "numbers only, of a file whose sum is known"},
    "File": {"files/hdf5.py": "h5py, on files that are new or that hdf5_format has read before"},
    **{name: {} for name in ("__import__", "eval", "exec", "extractall", "fromfile", "system", "unpack_archive")},
}
# where a file may be opened, made, changed or removed by its name, past files/nofollow.py, and whose it is
PAST_NOFOLLOW = {
    "allocator.py": "/proc",
    "boundary/hdf5.py folder.mkdir": "the store's folder, which the user names",
    "boundary/rowfile.py np.memmap": "of an open file",
    "commands/doctor.py": "disks and devices of this machine",
    "commands/export.py": "--out is the user's",
    "commands/simulate.py": "--profile is the user's",
    "config/declared.py": "the program's own methods",
    "config/load.py": "CONFIG.toml is the user's",
    "data/decode.py": "data.root is the user's",
    "data/vision.py": "data.root is the user's",
    "doctor": "disks and devices of this machine",
    "files/nofollow.py": "the one way",
    "files/scratch.py": "disks of this machine",
    "fits.py": "/proc and /sys",
    "rundir/folder.py folder.mkdir": "the store's folder, which the user names",
    "rundir/folder.py path.mkdir": "the run directory, which the user names",
    "report/terminal.py": "the terminal",
    "rundir/process.py": "/proc",
    "rundir/provenance.py": "/proc and the program's own folder",
    "watchdog.py": "/proc",
    "wire/mpi.py": "/proc and what MPI leaves",
}
OPENING = {
    *("open", "read_text", "read_bytes", "write_text", "write_bytes", "memmap", "tofile"),
    *("mkdir", "makedirs", "rename", "rmdir", "rmtree", "symlink", "symlink_to", "touch", "unlink"),
    *("copy2", "copyfile", "copytree"),
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func).rpartition(".")[2], node


def modules() -> list[str]:
    return [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py"))]


def allowed(module: str, call: ast.Call, places: dict[str, str]) -> bool:
    """Whether it may stand in this module or room, or this one call in this module."""
    this = f"{module} {'.'.join(ast.unparse(call.func).split('.')[-2:])}"
    return any(place in (module, this) or module.startswith(f"{place}/") for place in places)


def opens(name: str, call: ast.Call) -> bool:
    """Whether it opens something by its name.  Of nofollow's own functions only `open` is a word of Python, too."""
    safe = any(keyword.arg in ("opener", "dir_fd", "closefd") for keyword in call.keywords)
    safe |= any(ast.unparse(word).startswith("open_file(") for word in call.args[:1])
    return name in OPENING and not safe and (isinstance(call.func, ast.Attribute) or name == "open")


def loads(name: str, call: ast.Call) -> bool:
    """Whether it runs or loads something; `net.eval()` does not."""
    return name in LOADING and not (name == "eval" and isinstance(call.func, ast.Attribute))


def dangers(module: str) -> Iterator[str]:
    for name, call in calls(PACKAGE / module):
        if (loads(name, call) and not allowed(module, call, LOADING[name])) or (
            opens(name, call) and not allowed(module, call, PAST_NOFOLLOW)
        ):
            yield f"{module}:{call.lineno} {ast.unparse(call.func)}"


@pytest.mark.parametrize("module", modules())
def test_nothing_dangerous(module: str) -> None:
    assert list(dangers(module)) == []


@pytest.mark.parametrize(
    "line",
    [
        "importlib.import_module(name)",
        "pickle.Unpickler(file)",
        "exec(text)",
        "os.path.expandvars(text)",
        "open(path)",
        "path.read_text()",
        "os.open(path, 0)",
        "shutil.rmtree(folder)",
        "np.memmap(path)",
    ],
)
def test_what_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "new.py").write_text(f"{line}\nnet.eval()\nopen(path, opener=open_file)\nread_text(path)\n")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert list(dangers("new.py")) == [f"new.py:1 {line.partition('(')[0]}"]
