"""Downsampling against loops over pixels, and its derivative against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpcsplit.terms.resample import average, cells, pixels_per_cell, upsample

SHAPES = [(3, 4, 4), (2, 6, 8), (2, 7, 7), (1, 5, 6), (1, 1, 1), (2, 1, 3)]


def images(shape: tuple[int, ...], batch: int = 3) -> Tensor:
    return torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def members(shape: tuple[int, ...], row: int, column: int) -> list[tuple[int, int]]:
    """The pixels of one 2 x 2 cell that lie inside the image."""
    return [(i, j) for i in range(shape[1]) for j in range(shape[2]) if (i // 2, j // 2) == (row, column)]


def all_cells(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(r, c) for r in range((shape[1] + 1) // 2) for c in range((shape[2] + 1) // 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stored_row_has_one_value_for_each_cell_that_has_a_pixel(shape: tuple[int, ...]) -> None:
    rows, columns = (set(numbers) for numbers in zip(*all_cells(shape), strict=True))
    assert cells(shape, 2) == (shape[0], len(rows), len(columns))


@pytest.mark.parametrize("shape", SHAPES)
def test_average_is_the_mean_of_the_pixels_of_each_cell(shape: tuple[int, ...]) -> None:
    x = images(shape)
    found = average(x, 2)
    for row, column in all_cells(shape):
        pixels = torch.stack([x[:, :, i, j] for i, j in members(shape, row, column)])
        torch.testing.assert_close(found[:, :, row, column], pixels.mean(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_upsample_gives_every_pixel_the_value_of_its_cell(shape: tuple[int, ...]) -> None:
    stored = images(cells(shape, 2))
    pixels = upsample(stored, shape, 2)
    assert pixels.shape == (3, *shape)
    for i in range(shape[1]):
        for j in range(shape[2]):
            assert torch.equal(pixels[:, :, i, j], stored[:, :, i // 2, j // 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_per_cell_counts_the_pixels_inside_the_image(shape: tuple[int, ...]) -> None:
    m = pixels_per_cell(shape, 2)
    assert isinstance(m, Tensor)
    for row, column in all_cells(shape):
        assert m[row, column] == len(members(shape, row, column))


def test_a_seven_by_seven_map_stores_16_of_49_with_4_2_and_1_pixels_each() -> None:
    m = pixels_per_cell((8, 7, 7), 2)
    assert isinstance(m, Tensor)
    assert cells((8, 7, 7), 2) == (8, 4, 4)
    assert m.tolist() == [[4, 4, 4, 2]] * 3 + [[2, 2, 2, 1]]


@pytest.mark.parametrize("shape", SHAPES)
def test_average_is_the_transpose_of_upsample_divided_by_the_pixels_of_a_cell(shape: tuple[int, ...]) -> None:
    """And undoes it."""
    stored, x = images(cells(shape, 2)), images(shape)
    torch.testing.assert_close(average(upsample(stored, shape, 2), 2), stored)
    inner_pixels = (upsample(stored, shape, 2) * x).sum()
    inner_cells = (pixels_per_cell(shape, 2) * stored * average(x, 2)).sum()
    torch.testing.assert_close(inner_pixels, inner_cells)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_slope_of_the_squared_distance_needs_the_averaged_pixels_only(shape: tuple[int, ...]) -> None:
    """Erratum 6: d ‖US(Λ) − x‖² / dΛ = 2 m (Λ − avg x), 8 (Λ − avg x) inside."""
    stored, x = images(cells(shape, 2)).requires_grad_(), images(shape)
    (slope,) = torch.autograd.grad((upsample(stored, shape, 2) - x).square().sum(), stored)
    torch.testing.assert_close(slope, 2 * pixels_per_cell(shape, 2) * (stored.detach() - average(x, 2)))


def test_factor_one_leaves_everything_as_it_is() -> None:
    x = images((2, 5, 5))
    assert average(x, 1) is x
    assert upsample(x, (2, 5, 5), 1) is x
    assert cells((2, 5, 5), 1) == (2, 5, 5)
    assert pixels_per_cell((2, 5, 5), 1) == 1.0
    vectors = images((9,))
    assert average(vectors, 1) is vectors
    assert cells((9,), 1) == (9,)


def test_channels_last_makes_no_difference() -> None:
    x = images((4, 7, 6))
    torch.testing.assert_close(average(x.contiguous(memory_format=torch.channels_last), 2), average(x, 2))


@pytest.mark.parametrize("shape", [(7,), (5, 3)])
def test_what_is_no_feature_map_is_kept_whole(shape: tuple[int, ...]) -> None:
    x = images(shape)
    assert cells(shape, 2) == shape
    assert pixels_per_cell(shape, 2) == 1.0
    assert torch.equal(average(x, 2), x)
    assert torch.equal(upsample(x, shape, 2), x)
