from __future__ import annotations

import numpy as np
import pytest
import torch

from hpcsplit.data.source import crop_flip, draw

MASK = 2**64 - 1


def _mix(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def _one_sample(image: torch.Tensor, sample: int, seed: int, epoch: int, flip: bool, padding: int) -> torch.Tensor:
    """The definition, pixel by pixel, in Python's whole numbers."""
    key = _mix((_mix(seed) + epoch) & MASK)
    word = _mix((key + (sample + 1) * 0x9E3779B97F4A7C15) & MASK)
    down = (word % 2**24) * (2 * padding + 1) // 2**24 - padding
    right = (word // 2**24 % 2**24) * (2 * padding + 1) // 2**24 - padding
    _, height, width = image.shape
    answer = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                target = width - 1 - column if flip and word >> 63 else column
                answer[:, row, target] = image[:, row + down, column + right]
    return answer


def _images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    pixels = np.random.default_rng(5).integers(1, 256, (count, channels, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 8), 4), ((1, 7, 5), 2), ((2, 4, 6), 0)])
def test_equals_the_definition(flip: bool, shape: tuple[int, int, int], padding: int) -> None:
    ids = np.array([0, 1, 7, 49_999, 2**40, 3, 12, 100])
    images = _images(len(ids), *shape)
    got = crop_flip(images, ids, seed=11, epoch=3, flip=flip, padding=padding)
    wanted = [_one_sample(image, int(sample), 11, 3, flip, padding) for image, sample in zip(images, ids, strict=True)]
    assert got.dtype == torch.uint8
    assert torch.equal(got, torch.stack(wanted))


def test_choices_are_even_and_independent() -> None:
    down, right, flip = draw(np.arange(50_000), seed=0, epoch=0, padding=4)
    table = np.zeros((9, 9, 2))
    np.add.at(table, (down, right, flip.astype(int)), 1)
    expected = 50_000 / table.size
    chi_square = ((table - expected) ** 2 / expected).sum()  # 161 degrees of freedom, standard deviation 18
    assert 161 - 5 * 18 < chi_square < 161 + 5 * 18
    assert table.sum((1, 2)).min() > 0


def test_neighbours_in_id_epoch_and_seed_are_unrelated() -> None:
    base = draw(np.arange(20_000), seed=0, epoch=0, padding=4)
    others = [
        draw(np.arange(1, 20_001), seed=0, epoch=0, padding=4),
        draw(np.arange(20_000), seed=0, epoch=1, padding=4),
        draw(np.arange(20_000), seed=1, epoch=0, padding=4),
    ]
    for other in others:
        for mine, yours in zip(base, other, strict=True):
            assert abs(np.corrcoef(mine, yours)[0, 1]) < 5 / np.sqrt(20_000)


def test_seed_and_epoch_do_not_stand_in_for_each_other() -> None:
    swapped = [draw(np.arange(100), seed=a, epoch=b, padding=4)[0] for a, b in ((1, 2), (2, 1), (0, 3), (3, 0))]
    assert len({tuple(offsets) for offsets in swapped}) == 4


@pytest.mark.parametrize("flip", [False, True])
def test_a_sample_does_not_depend_on_its_batch(flip: bool) -> None:
    ids = np.array([5, 900, 3, 77, 12])
    images = _images(5, 3, 8, 8)
    together = crop_flip(images, ids, seed=2, epoch=9, flip=flip)
    order = np.array([3, 0, 4, 2, 1])
    mixed = crop_flip(images[order], ids[order], seed=2, epoch=9, flip=flip)
    assert torch.equal(mixed, together[order])
    for row in range(5):
        alone = crop_flip(images[row : row + 1], torch.from_numpy(ids[row : row + 1]), seed=2, epoch=9, flip=flip)
        assert torch.equal(alone[0], together[row])


def test_flip_only_where_allowed() -> None:
    ramp = torch.arange(1, 9, dtype=torch.uint8).expand(200, 1, 8, 8).contiguous()
    ids = np.arange(200)
    plain = crop_flip(ramp, ids, seed=0, epoch=0, flip=False, padding=0)
    flipped = crop_flip(ramp, ids, seed=0, epoch=0, flip=True, padding=0)
    assert torch.equal(plain, ramp)
    mirrored = int((flipped[:, 0, 0, 0] == 8).sum())
    assert 60 < mirrored < 140


def test_any_size_of_seed_and_batch() -> None:
    images = _images(2, 1, 4, 4)
    assert crop_flip(images, np.array([0, 1]), seed=2**64 - 1, epoch=2**31, flip=True).shape == (2, 1, 4, 4)
    assert crop_flip(images[:0], np.array([], dtype=np.int64), seed=0, epoch=0, flip=True).shape == (0, 1, 4, 4)
