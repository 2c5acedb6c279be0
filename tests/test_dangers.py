"""No call runs or loads what may be somebody else's, beside what bandit looks for (pyproject.toml)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hpcsplit"
LOADING: dict[str, dict[str, str]] = {  # the call -> where it may stand, and why nothing strange gets there
    "import_module": {
        "host/factory.py": "a function of the user's own, which no run directory names",
    },
    "resolve_name": {
        "plan/setting.py": "a method, a task or an optimizer of this program, by the lists of them",
        "data/dataset.py": "a reader of this program, by the catalog",
        "nets/catalog.py": "a builder of this program, by the catalog",
        "report/figure.py": "a figure, by the list of them",
    },
    "Unpickler": {"data/decode.py": "it finds no class that a pickle names"},
    "loadmat": {"data/decode.py": "numbers only, of a file whose sum is known"},
    "File": {"files/hdf5.py": "h5py, on files that are new or that hdf5_format has read before"},
    "memmap": {"store/rowfile.py": "of an open file"},
    **{
        name: {}
        for name in ("__import__", "eval", "exec", "expandvars", "extractall", "fromfile", "system", "unpack_archive")
    },
}


def dangers(module: str) -> Iterator[str]:
    """Such calls in a module that is not where they may stand; `net.eval()` is none."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called.rpartition(".")[2]
            if name in LOADING and module not in LOADING[name] and not called.endswith(".eval"):
                yield f"{module}:{node.lineno} {called}"


@pytest.mark.parametrize("module", [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py"))])
def test_nothing_dangerous(module: str) -> None:
    assert list(dangers(module)) == []


@pytest.mark.parametrize("line", ["importlib.import_module(name)", "exec(text)", "eval(text)", "np.memmap(path)"])
def test_what_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    (tmp_path / "new.py").write_text(f"{line}\nnet.eval()\n")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert list(dangers("new.py")) == [f"new.py:1 {line.partition('(')[0]}"]
