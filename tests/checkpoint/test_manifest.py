"""A manifest with a right checksum and wrong values is refused in a sentence, by every command that reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit.checkpoint import manifest
from hpcsplit.checkpoint.manifest import Description, Manifest
from hpcsplit.checkpoint.state import stage_files
from hpcsplit.data.inputs import Inputs
from hpcsplit.engine.persist import EpochSums
from hpcsplit.errors import CheckpointError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files.hdf5 import Stored, read_attributes, write_tensors
from tests.checkpoint.conftest import Run
from tests.commands.damage import sign

ROWS: Description = {
    "slot": 1,
    "epoch": 3,
    "rows": 9,
    "dtype": "float32",
    "filled": {"u": 0},
    "checksums": {"l": 5},
    "boundaries": {"l": 3},
}
AUX = {key: value for key, value in ROWS.items() if key != "boundaries"}
GOOD: dict[str, Any] = {
    "format": 2,
    "epochs_done": 3,
    "step": 0,
    "stages": 2,
    "cuts": "[3]",
    "fingerprints": '{"seed": "0"}',
    "config": "[data]",
    "provenance": "",
    "aux_mode": "keep",
    "aux_needed": 1,
    "aux": json.dumps([None, ROWS]),
    "recomputed": 0,
    "phases": "SPP",
}


def written(place: Path, **changes: Any) -> Path:
    """A checkpoint with a manifest of these values; None leaves one out."""
    folder = place / "epoch-0003-step-000000"
    folder.mkdir()
    values = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    write_tensors(folder / ckpt.MANIFEST, {}, values)
    sign(folder)
    return folder


SAID = Manifest(
    epochs_done=3,
    step=0,
    cuts=[3],
    fingerprints={"seed": "0"},
    config="[data]",
    provenance="",
    aux_mode="keep",
    aux_needed=True,
    aux=[None, ROWS],
    recomputed=False,
    phases="SPP",
)


def test_what_is_written_is_what_every_checkpoint_of_this_format_has(tmp_path: Path) -> None:
    """To the byte: the attributes, their types and their order are those of the versions before."""
    before = written(tmp_path) / ckpt.MANIFEST
    digest = manifest.write(tmp_path, SAID)
    now = tmp_path / ckpt.MANIFEST
    assert read_attributes(now) == GOOD
    assert {key: type(value) for key, value in read_attributes(now).items()} == {k: type(v) for k, v in GOOD.items()}
    assert now.read_bytes() == before.read_bytes()
    assert digest == hashlib.sha256(now.read_bytes()).hexdigest()


@pytest.mark.parametrize("absent", ["", "phases", "provenance"])
def test_what_is_there_comes_back(tmp_path: Path, absent: str) -> None:
    """Older versions wrote no phases, and at first no provenance."""
    changes = {absent: None} if absent else {}
    blank: dict[str, Any] = dict.fromkeys(changes, "")
    assert manifest.read(written(tmp_path, **changes)) == dataclasses.replace(SAID, **blank)


def test_it_says_what_the_samples_are(tmp_path: Path) -> None:
    """As data/inputs.py has it, mean and deviation to the bit; damage is one sentence."""
    mean = tuple(torch.tensor([0.1, 1 / 3]).tolist())
    inputs = Inputs((2, 8, 8), mean, (1.0, 0.5), True, ("cat", "größer"))
    folder = tmp_path / "epoch-0003-step-000000"
    folder.mkdir()
    manifest.write(folder, dataclasses.replace(SAID, inputs=inputs.as_dict()))
    sign(folder)
    assert Inputs.from_dict(manifest.read(folder).inputs, "it") == inputs
    for wrong in ({}, {"shape": 3}, {"shape": [1], "mean": [0.5]}, {"shape": [1], "mean": [0.5], "std": [0.0]}):
        with pytest.raises(CheckpointError, match=r"^it "):
            Inputs.from_dict(wrong, "it")


WRONG: dict[str, list[Any]] = {
    "format": [],
    "epochs_done": ["three", 0.5, -1],
    "step": ["0", -1],
    "cuts": ["[3, 3]", "[0]", '["3"]', "{}", "3", "[3", "[" * 100_000, "[1" + "0" * 5000 + "]"],
    "fingerprints": ["[]", '{"seed": 0}', "null"],
    "config": [3],
    "provenance": [0],
    "aux_mode": [1],
    "aux_needed": ["yes"],
    "aux": ["{}", "[3]", '[{"slot": 0}]', json.dumps([{**AUX, "boundaries": {"l": "3"}}]), json.dumps([AUX])],
    "recomputed": [""],
    "phases": [1.5],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in WRONG if key not in ("phases", "provenance")),
        *((key, value) for key, values in WRONG.items() for value in values),
    ],
)
def test_absent_or_of_another_kind(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"its manifest\.h5 cannot be understood .*; use the version that wrote it"
    ):
        manifest.read(written(tmp_path, **{key: value}))


def test_another_format_and_a_file_without_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path, format=3)
    with pytest.raises(CheckpointError, match="has format 3, this program reads 2"):
        manifest.read(folder)
    monkeypatch.setattr(manifest, "_MOST_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"manifest\.h5 has \d+ bytes, at most 100 are read"):
        manifest.read(folder)


def test_a_checkpoint_without_stages_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="SHA256SUMS lists no file of a stage"):
        stage_files(written(tmp_path))


def test_a_checkpoint_takes_the_place_of_one_with_its_name(tmp_path: Path) -> None:
    """As when a run goes on from an older checkpoint and comes by the same step again."""
    for text in ("old", "new"):
        folder = ckpt.begin(tmp_path, "epoch-0003-step-000000")
        for name in (text, "stage-000.h5"):
            (folder / name).write_text(text)
        final = ckpt.finish(
            folder, {name: hashlib.sha256(text.encode()).hexdigest() for name in (text, "stage-000.h5")}, 2
        )
    assert sorted(path.name for path in final.iterdir()) == [ckpt.SUMS, "new", "stage-000.h5"]
    assert ckpt.image(final, "stage-000.h5") == b"new"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()] == [final.name]


def test_a_file_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with open(folder / "stage-000.h5", "wb") as file:
        file.truncate(1 << 43)
    with open(folder / ckpt.SUMS, "a") as sums:
        sums.write(f"{'0' * 64}  stage-000.h5\n")
    with pytest.raises(CheckpointError, match="has 8796093022208 bytes, at most"):
        ckpt.image(folder, "stage-000.h5")


@pytest.mark.parametrize("text", [None, 3, "", "[]", '{"tally": 0}', "[" * 100_000])
def test_sums_of_another_kind(text: Any) -> None:
    sums = EpochSums(seconds={"a": 1.0})
    assert EpochSums.from_json(sums.to_json()) == sums
    assert EpochSums.from_json(text) is None


def rewritten(change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        stored = Stored(path.read_bytes(), path)
        tensors = {key: stored.tensor(key) for key in stored.headers}
        change(tensors, stored.attributes)
        write_tensors(path, tensors, stored.attributes)
        sign(path.parent)

    return write


def _wide(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if key.startswith("weights/"))
    tensors[key] = torch.zeros(7, 7, 7)


def _momentum(tensors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in tensors if key.startswith("optim/"))
    tensors[key] = torch.zeros(100, 1000)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors, attributes: _wide(tensors), r"has shape \(7, 7, 7\)"),
        (lambda tensors, attributes: _momentum(tensors), r"has shape \(100, 1000\) in the checkpoint, more than"),
        (lambda tensors, attributes: attributes.pop("sums"), "does not say what the epoch under way"),
        (lambda tensors, attributes: attributes.update(sums="[]"), "does not say what the epoch under way"),
    ],
)
def test_a_stage_with_other_things_than_expected(
    half: Run, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, change: Any, reason: str
) -> None:
    """Nothing of its tensors is read."""
    rewritten(change)(half.newest / "stage-001.h5")
    asked: list[str] = []
    real = Stored.tensor

    def tensor(self: Stored, key: str) -> torch.Tensor:
        asked.append(str(self._path))
        return real(self, key)

    monkeypatch.setattr(Stored, "tensor", tensor)
    said = refused()
    assert re.search(reason, said)
    assert said.count("\n") == 1
    if "shape" in reason:
        assert not any("stage-001" in path for path in asked)
