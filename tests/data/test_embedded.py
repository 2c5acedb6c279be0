from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcsplit.data.dataset import Dataset, fingerprint, load


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def _accuracy_of_nearest_class_mean(data: Dataset) -> float:
    train, test = data.train.images.flatten(1).float(), data.test.images.flatten(1).float()
    means = torch.stack([train[data.train.labels == label].mean(0) for label in range(data.classes)])
    return (torch.cdist(test, means).argmin(1) == data.test.labels).float().mean().item()


def test_digits_are_all_there_once(digits: Dataset) -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    assert (len(digits.train), len(digits.test), digits.input_shape) == (1437, 360, (1, 32, 32))
    labels = torch.cat([digits.train.labels, digits.test.labels])
    assert torch.equal(labels.bincount(), torch.from_numpy(load_digits().target).bincount())
    images = torch.cat([digits.train.images, digits.test.images]).flatten(1)
    assert len(images.unique(dim=0)) == len(np.unique(load_digits().data, axis=0))


def test_digits_are_enlarged_without_a_shift(digits: Dataset) -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    shrunk = torch.nn.functional.avg_pool2d(digits.train.images.float(), 4).flatten(1) * 16 / 255
    originals = torch.from_numpy(load_digits().data).float()
    distance, nearest = torch.cdist(shrunk, originals).min(1)
    assert torch.equal(torch.from_numpy(load_digits().target)[nearest], digits.train.labels)
    assert distance.max() < 25
    assert int(digits.train.images.max()) == 255


def test_both_sets_are_the_same_on_every_machine(digits: Dataset) -> None:
    assert fingerprint(digits) == "d9c4a59f7128a5e9"
    assert fingerprint(load("fake")) == "0f15fdb140363fd3"


def test_both_sets_can_be_learned(digits: Dataset) -> None:
    assert _accuracy_of_nearest_class_mean(digits) > 0.85
    assert _accuracy_of_nearest_class_mean(load("fake")) > 0.95


def test_fake_classes_take_turns_and_no_sample_repeats() -> None:
    fake = load("fake")
    assert fake.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    images = torch.cat([fake.train.images, fake.test.images]).flatten(1)
    assert len(images.unique(dim=0)) == 1280
