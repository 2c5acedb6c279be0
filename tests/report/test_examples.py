"""Confusion matrix and worst samples against counts by other means."""

from __future__ import annotations

import base64
import io
from collections import Counter

import matplotlib.image
import numpy as np
import pytest

from hpcsplit.report.examples import Mistakes, Wrong, confusion_matrix, worst
from hpcsplit.report.page import rendered
from tests.report.reading import Reader


@pytest.fixture
def tested() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predicted classes and losses of 500 samples; class 6 of 7 never occurs."""
    random = np.random.default_rng(5)
    return random.integers(0, 6, 500), random.integers(0, 6, 500), random.exponential(1.0, 500)


def test_the_matrix_counts_pairs(tested: tuple[np.ndarray, ...]) -> None:
    labels, predicted, _ = tested
    pairs = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    expected = [[pairs[label, answer] for answer in range(7)] for label in range(7)]
    assert confusion_matrix(labels, predicted, 7).tolist() == expected


def test_the_worst_are_the_wrong_ones_with_the_largest_loss(tested: tuple[np.ndarray, ...]) -> None:
    labels, predicted, loss = tested
    expected = sorted((k for k in range(500) if labels[k] != predicted[k]), key=lambda k: -loss[k])
    assert worst(labels, predicted, loss, most=9) == expected[:9]
    assert worst(labels, labels, loss) == []
    assert worst(np.array([0, 0]), np.array([1, 1]), np.array([2.0, 2.0])) == [0, 1]


def test_the_gallery_has_the_pixels(tested: tuple[np.ndarray, ...]) -> None:
    random = np.random.default_rng(6)
    images = [random.integers(0, 256, (4, 5, channels), dtype=np.uint8) for channels in (1, 3)]
    wrongs = [Wrong(k, 0, 1, 0.75, 3.25, image) for k, image in enumerate(images)]
    reader = Reader(
        rendered("examples.html.j2", found=Mistakes("it", ("a<b", "c"), np.array([[1, 2], [0, 3]]), wrongs))
    )
    sources = [attributes["src"] for name, attributes in reader.elements if name == "img"]
    for source, image in zip(sources, images, strict=True):
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert (np.round(pixels[..., :3] * 255) == image).all()
    assert reader.text.count("a<b, taken for c (75%); loss 3.25") == 2
    assert "4 of 6 test samples are right" in reader.text
    assert "a<b as c" in reader.text


@pytest.mark.parametrize("classes", [2, 100])
def test_nothing_wrong_and_many_classes(classes: int) -> None:
    reader = Reader(
        rendered(
            "examples.html.j2", found=Mistakes("it", tuple(map(str, range(classes))), np.eye(classes, dtype=int), [])
        )
    )
    assert "No test sample is wrong." in reader.text
    assert reader.count("figure") == 1
    assert reader.count("svg") == 1
