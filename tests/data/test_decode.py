"""Files of data sets are read once, and a pickle among them cannot do anything."""

from __future__ import annotations

import builtins
import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcsplit.data import decode
from hpcsplit.data.catalog import SPECS
from hpcsplit.data.dataset import load
from hpcsplit.errors import DataError

IMAGES = np.arange(5 * 3072, dtype=np.int64).astype(np.uint8).reshape(5, 3072)
LABELS = [0, 9, 3, 3, 1]
# what Python 2 writes of {"data": an array of 2 x 3072 zeros, "labels": [7, 2]}, as the published files are
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq"
    b"\x05(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff"
    b"\xff\xffK\x00tb\x89T\x00\x18\x00\x00" + bytes(range(200, 248)) * 128 + b"tbU\x06labelsq\x08]q\x09(K\x07K\x02eu."
)


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", ["labels", "fine_labels"])
def test_images_and_labels_of_any_protocol(protocol: int, key: str) -> None:
    images, labels = decode.cifar(pickle.dumps({"data": IMAGES, key: LABELS, "filenames": ["a"]}, protocol))
    assert images.shape == (5, 3, 32, 32)
    assert np.array_equal(images.reshape(5, -1), IMAGES)
    assert labels == LABELS


def test_a_file_of_python_2() -> None:
    images, labels = decode.cifar(PYTHON_2)
    assert images.tobytes() == bytes(range(200, 248)) * 128
    assert labels == [7, 2]


def test_an_archive_of_arrays_with_a_pickle(tmp_path: Path) -> None:
    archive, marker = tmp_path / "it.npz", tmp_path / "marker"
    np.savez(archive, images=np.array([Evil(marker)], dtype=object), labels=np.zeros(1))
    with pytest.raises(ValueError, match="pickle"):
        decode.npz(archive.read_bytes())
    assert not marker.exists()


def evil_array(marker: Path) -> bytes:
    """A valid file whose array is made by a call of `open`."""
    good = pickle.dumps({"data": IMAGES, "labels": LABELS}, 2)
    return good[:-1] + b"0" + pickle.dumps(Evil(marker), 2)[2:-1] + b"0" + good[2:]


@pytest.mark.parametrize("kind", ["inside", "behind", "getattr", "import", "dtype", "state"])
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    marker = tmp_path / "run"
    good = {"data": IMAGES, "labels": LABELS}
    (tmp_path / "strange_module.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = {
        "inside": pickle.dumps({**good, "batch_label": Evil(marker)}),
        "behind": evil_array(marker),
        "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'dumps'\ntR.",
        "import": b"cstrange_module\nopen\n.",
        "dtype": pickle.dumps({**good, "data": np.array([[marker]], dtype=object)}),
        "state": pickle.dumps({**good, "data": IMAGES.astype(np.float32)}),
    }[kind]
    with pytest.raises(ValueError, match=r"names|only unsigned bytes"):
        decode.cifar(found)
    assert not marker.exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"data": IMAGES, "labels": [0.5] * 5},
        {"data": IMAGES},
        {"data": [1, 2], "labels": LABELS},
        {"data": np.asfortranarray(IMAGES), "labels": LABELS},
    ],
)
def test_other_things_are_no_data(entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it has|no images"):
        decode.cifar(pickle.dumps(entry))


def test_a_file_is_read_once_and_by_its_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert decode.content(path, hashlib.md5(b"abc").hexdigest()) == b"abc"
    with pytest.raises(ValueError, match="a does not have the checksum of the published file"):
        decode.content(path, hashlib.md5(b"abd").hexdigest())
    monkeypatch.setattr(decode, "MOST_BYTES", 2)
    with pytest.raises(ValueError, match="no file of at most 2 bytes"):
        decode.content(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no file"):
        decode.content(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_exchange_behind_the_checksum_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each file is right when it is looked at for the first time, and a planted one from then on."""
    from torchvision import datasets

    layout, marker = SPECS[name].layout, tmp_path / "run"
    assert layout
    kind = getattr(datasets, layout.kind)
    good = pickle.dumps({"data": IMAGES, "labels" if name == "cifar10" else "fine_labels": LABELS})
    md5 = hashlib.md5(good).hexdigest()
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(kind, files, [[file, md5] for file, _ in getattr(kind, files)[:1]])
    monkeypatch.setitem(SPECS, name, replace(SPECS[name], train=5, test=5))
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    evil = pickle.dumps({"data": Evil(marker)})
    opened: list[str] = []
    for file, _ in (*kind.train_list, *kind.test_list):
        (folder / file).write_bytes(good)

    def exchanging(path: Any, *words: Any, **more: Any) -> Any:
        found = real(path, *words, **more)
        if str(path).startswith(str(folder)):
            opened.append(Path(path).name)
            Path(path).with_suffix(".new").write_bytes(evil)
            os.replace(Path(path).with_suffix(".new"), path)
        return found

    real = builtins.open
    monkeypatch.setattr(builtins, "open", exchanging)
    data = load(name, str(tmp_path))
    monkeypatch.setattr(builtins, "open", real)
    assert torch.equal(data.train.images, torch.from_numpy(IMAGES.reshape(5, 3, 32, 32)))
    assert sorted(opened) == sorted({file for file, _ in (*kind.train_list, *kind.test_list)})
    with pytest.raises(DataError, match="does not have the checksum"):
        load(name, str(tmp_path))
    assert not marker.exists()
