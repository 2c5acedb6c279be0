"""train, evaluate, export and report refuse the same checkpoints, with the same sentence."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.files.hdf5 import read_attributes, write_tensors
from tests.commands.conftest import Run
from tests.commands.damage import flip_a_bit, sign
from tests.engine.small import train_here

BAD = 65
Command = Callable[..., tuple[int, str, str]]


def rewrite(path: Path, **changes: Any) -> None:
    """Give the manifest these attributes, None for one that it has no more, and a sum that is right."""
    values = {key: value for key, value in (read_attributes(path) | changes).items() if value is not None}
    write_tensors(path, {}, values)
    sign(path.parent)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (partial(rewrite, format=1), "has format 1, this program reads 2; continue with the version that wrote it"),
        (partial(rewrite, format="2"), "has format '2', this program reads 2; continue with the version that wrote it"),
        (partial(rewrite, format=None), "manifest.h5 cannot be understood (it has no format)"),
        (flip_a_bit, "is damaged: manifest.h5 does not have the checksum that SHA256SUMS lists"),
        (remove, "is damaged: manifest.h5 cannot be read (No such file or directory)"),
        (partial(rewrite, aux_needed=None), "manifest.h5 cannot be understood (it has no aux_needed)"),
        (partial(rewrite, cuts="[3, 3]"), "manifest.h5 cannot be understood (its epochs, step or cuts cannot be)"),
    ],
)
def test_one_sentence_for_all(
    copy: Run, hpcsplit: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Any, reason: str
) -> None:
    harm(copy.newest / "manifest.h5")
    code, out, said = hpcsplit("evaluate", copy.folder)
    assert (code, out) == (BAD, "")
    assert said.startswith(f"hpcsplit: checkpoint {copy.newest} ")
    assert reason in said
    assert said.count("\n") == 1
    assert hpcsplit("export", copy.folder, "--out", tmp_path / "weights.pt") == (BAD, "", said)
    assert not (tmp_path / "weights.pt").exists()
    assert hpcsplit("report", copy.folder, "--out", tmp_path / "page.html")[0] == 0
    sentence = said.removeprefix("hpcsplit: ").rstrip(".\n")
    assert sentence in html.unescape((tmp_path / "page.html").read_text())
    capsys.readouterr()
    assert train_here(copy.toml, copy.folder) == BAD
    assert said in capsys.readouterr().err
