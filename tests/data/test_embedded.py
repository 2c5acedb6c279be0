from __future__ import annotations

import fnmatch
import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from hpcsplit.data import decode, embedded
from hpcsplit.data.dataset import Dataset, InMemory, fingerprint, load
from hpcsplit.errors import DataError

PROJECT = Path(embedded.__file__).parents[2]


@pytest.fixture(scope="module")
def digits() -> Dataset[InMemory]:
    return load("digits")


def _accuracy_of_nearest_class_mean(data: Dataset[InMemory]) -> float:
    train, test = data.train.images.flatten(1).float(), data.test.images.flatten(1).float()
    means = torch.stack([train[data.train.labels == label].mean(0) for label in range(10)])
    return (torch.cdist(test, means).argmin(1) == data.test.labels).float().mean().item()


def test_digits_are_all_there_once(digits: Dataset[InMemory]) -> None:
    """How many samples each class has in the test half says UCI's optdigits.names."""
    assert (len(digits.train), len(digits.test), digits.train.images.shape[1:]) == (1437, 360, (1, 32, 32))
    labels = torch.cat([digits.train.labels, digits.test.labels])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images = torch.cat([digits.train.images, digits.test.images]).flatten(1)
    assert len(images.unique(dim=0)) == 1797


def test_digits_are_enlarged_without_a_shift(digits: Dataset[InMemory]) -> None:
    pixels, labels = map(torch.from_numpy, decode.npz(embedded.DIGITS.read_bytes()))
    shrunk = torch.nn.functional.avg_pool2d(digits.train.images.float(), 4).flatten(1) * 16 / 255
    originals = pixels.flatten(1).float()
    distance, nearest = torch.cdist(shrunk, originals).min(1)
    assert torch.equal(labels[nearest].long(), digits.train.labels)
    assert distance.max() < 25
    assert int(digits.train.images.max()) == 255


def test_the_file_has_what_scikit_learn_has() -> None:
    """SHA-256 of `images` and `target` of load_digits (scikit-learn 1.9.1) as bytes."""
    sums = [hashlib.sha256(values.tobytes()).hexdigest() for values in decode.npz(embedded.DIGITS.read_bytes())]
    assert sums == [
        "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3",
        "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0",
    ]


def test_digits_need_no_scikit_learn() -> None:
    code = (
        "import sys\nsys.modules['sklearn'] = sys.modules['scipy'] = None\n"
        "from hpcsplit.data.dataset import fingerprint, load\nprint(fingerprint(load('digits')))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "d9c4a59f7128a5e9"


@pytest.mark.parametrize("damage", ["absent", "a bit"])
def test_a_damaged_installation_is_a_sentence(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bytearray(embedded.DIGITS.read_bytes())
    found[40_000] ^= 1
    if damage == "a bit":
        (tmp_path / "digits.npz").write_bytes(found)
    monkeypatch.setattr(embedded, "DIGITS", tmp_path / "digits.npz")
    with pytest.raises(DataError, match=r"digits\.npz cannot be read \(.*\); install hpcsplit again"):
        load("digits")


def test_the_package_takes_its_data_along() -> None:
    """Every file that is no module is named in pyproject.toml, and so are the licences."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    named = project["tool"]["setuptools"]["package-data"]
    others = [path for path in (PROJECT / "hpcsplit").rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert {path.name for path in others} >= {"digits.npz", "digits.txt"}
    for path in others:
        patterns = named.get(".".join(path.parent.relative_to(PROJECT).parts), [])
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), path
    assert "hpcsplit/data/digits.txt" in project["project"]["license-files"]


def test_both_sets_are_the_same_on_every_machine(digits: Dataset[InMemory]) -> None:
    assert fingerprint(digits) == "d9c4a59f7128a5e9"
    assert fingerprint(load("fake")) == "0f15fdb140363fd3"


def test_both_sets_can_be_learned(digits: Dataset[InMemory]) -> None:
    assert _accuracy_of_nearest_class_mean(digits) > 0.85
    assert _accuracy_of_nearest_class_mean(load("fake")) > 0.95


def test_fake_classes_take_turns_and_no_sample_repeats() -> None:
    fake = load("fake")
    assert fake.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    images = torch.cat([fake.train.images, fake.test.images]).flatten(1)
    assert len(images.unique(dim=0)) == 1280
