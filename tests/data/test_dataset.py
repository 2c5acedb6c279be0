from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hpcsplit.data import embedded
from hpcsplit.data.catalog import SPECS
from hpcsplit.data.dataset import Dataset, InMemory, Part, channel_moments, fingerprint, load
from hpcsplit.errors import DataError


@pytest.fixture(scope="module")
def fake() -> Dataset[InMemory]:
    return load("fake")


def test_shapes_and_types(fake: Dataset[InMemory]) -> None:
    assert fake.train.images.shape == (1024, 3, 32, 32)
    assert fake.test.images.shape == (256, 3, 32, 32)
    assert (fake.train.images.dtype, fake.train.labels.dtype) == (torch.uint8, torch.int64)
    assert len(fake.test) == 256


def test_mean_and_std_are_those_of_the_training_pixels_between_0_and_1(fake: Dataset[InMemory]) -> None:
    pixels = fake.train.images.double() / 255
    torch.testing.assert_close(fake.mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(fake.std, pixels.std((0, 2, 3), correction=0).float())
    assert fake.mean.dtype == fake.std.dtype == torch.float32


def test_limits_keep_the_first_samples_and_the_statistics_follow(fake: Dataset[InMemory]) -> None:
    few = load("fake", limit_train=30, limit_test=7)
    assert torch.equal(few.train.images, fake.train.images[:30])
    assert torch.equal(few.test.labels, fake.test.labels[:7])
    assert few.train.images.untyped_storage().nbytes() == 30 * 3 * 32 * 32
    torch.testing.assert_close(few.mean, (few.train.images.double() / 255).mean((0, 2, 3)).float())
    assert not torch.equal(few.mean, fake.mean)


@pytest.mark.parametrize(("key", "limit", "size"), [("limit_train", 1438, 1437), ("limit_test", 361, 360)])
def test_limit_above_the_size(key: str, limit: int, size: int) -> None:
    def limited(count: int) -> Dataset[InMemory]:
        options: dict[str, Any] = {key: count}
        return load("digits", **options)

    with pytest.raises(DataError, match=rf"data\.{key} = {limit}.* {size} "):
        limited(limit)
    assert len(getattr(limited(size), key.removeprefix("limit_"))) == size


def test_random_images_are_as_many_as_are_asked_for(fake: Dataset[InMemory]) -> None:
    many = load("fake", limit_train=1500, limit_test=7)
    assert (len(many.train), len(many.test)) == (1500, 7)
    assert torch.equal(many.train.images[: len(fake.train)], fake.train.images)


def test_random_images_beyond_the_memory() -> None:
    with pytest.raises(
        DataError, match=r"1000000000000 \+ 256 samples of fake have 3072000000786432 bytes, \d+ bytes of"
    ):
        load("fake", limit_train=10**12)


def test_negative_limit() -> None:
    with pytest.raises(DataError, match="limit_test = -1"):
        load("fake", limit_test=-1)


def test_pooling_averages_squares_and_rounds_halves_up(fake: Dataset[InMemory]) -> None:
    pooled = load("fake", pool=True)
    wide = fake.train.images.double()
    exact = torch.nn.functional.avg_pool2d(wide, 2)
    assert pooled.train.images.shape[1:] == (3, 16, 16)
    assert torch.equal(pooled.train.images, (exact + 0.5).floor().to(torch.uint8))
    assert torch.equal(pooled.test.labels, fake.test.labels)
    torch.testing.assert_close(pooled.std, (pooled.train.images / 255).std((0, 2, 3), correction=0))


def test_pooling_reaches_both_ends_of_the_scale() -> None:
    part = InMemory(torch.tensor([[[[255, 255, 0, 1], [255, 255, 0, 0]]]], dtype=torch.uint8), torch.zeros(1).long())
    assert part.pooled().images.tolist() == [[[[255, 0]]]]


def test_constant_channel_divides_by_one() -> None:
    images = torch.zeros(4, 2, 2, 2, dtype=torch.uint8)
    images[:, 0] = 51
    images[0, 1] = 255
    mean, std = channel_moments(images)
    assert mean.tolist() == pytest.approx([0.2, 0.25])
    assert std.tolist() == pytest.approx([1.0, (0.25 * 0.75) ** 0.5])


def _reader_with(monkeypatch: pytest.MonkeyPatch, image_shape: tuple[int, ...], *labels: list[int]) -> None:
    """`labels` of the training and the test part, or of both."""
    spec = replace(SPECS["fake"], train=3, test=3, shape=(1, 4, 4), endless=False)
    monkeypatch.setitem(SPECS, "fake", spec)
    parts = [Part.of(np.zeros(image_shape, np.uint8), np.array(numbers)) for numbers in labels]
    monkeypatch.setattr(embedded, "fake", lambda *_: (parts[0], parts[-1]))


@pytest.mark.parametrize("which", ["training", "test"])
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 9, 10], r"1 of the 3 {} labels of fake are outside 0 \.\. 9, the first is 10 at sample 2;"),
        ([0, 9, -1], r"1 of the 3 {} labels of fake are outside 0 \.\. 9, the first is -1 at sample 2;"),
        ([9, 255, -7], r"2 of the 3 {} labels of fake are outside 0 \.\. 9, the first is 255 at sample 1;"),
    ],
)
def test_labels_outside_the_classes(
    monkeypatch: pytest.MonkeyPatch, labels: list[int], sentence: str, which: str
) -> None:
    parts = {"training": [0, 0, 0], "test": [9, 9, 9]} | {which: labels}
    _reader_with(monkeypatch, (3, 1, 4, 4), *parts.values())
    with pytest.raises(DataError, match=sentence.format(which)):
        load("fake")


def test_labels_are_checked_before_the_limits_cut_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    _reader_with(monkeypatch, (3, 1, 4, 4), [0, 9, 10])
    with pytest.raises(DataError, match="the first is 10"):
        load("fake", limit_train=2, limit_test=2)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 3, 4, 4), (3, 1, 4, 5)])
def test_images_that_are_not_of_this_set(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    _reader_with(monkeypatch, shape, [0] * shape[0])
    with pytest.raises(DataError, match=r"expected \(3, 1, 4, 4\)"):
        load("fake")


def test_fingerprint_sees_every_pixel_label_and_shape(fake: Dataset[InMemory]) -> None:
    mark = fingerprint(fake)
    assert len(mark) == 16
    assert fingerprint(load("fake")) == mark
    assert fingerprint(load("fake", limit_test=255)) != mark

    def changed(**parts: Any) -> str:
        return fingerprint(replace(fake, **parts))

    pixel = fake.train.images.clone()
    pixel[-1, -1, -1, -1] ^= 1
    label = fake.test.labels.clone()
    label[-1] = (label[-1] + 1) % 10
    assert changed(train=InMemory(pixel, fake.train.labels)) != mark
    assert changed(test=InMemory(fake.test.images, label)) != mark
    assert changed(train=InMemory(fake.train.images.view(1024, 3, 16, 64), fake.train.labels)) != mark
