"""Downsampling of boundary variables: Λ lives on 2 × 2 cells, λ = US(Λ) on pixels (DS-SPH section 3.1).

US copies a cell's value to its pixels (a Kronecker product with ones); avg is its transpose divided by the number m of
pixels in the cell, so that ∂ψ(US(Λ), x)/∂Λ = 2 m (Λ − avg x): the neighbour needs the averaged x only, with no loss.
Cells at the lower and right edge of odd sizes have m = 2 or 1 instead of 4.  What is no feature map, such as a vector,
is kept whole: a cell of its own for each element.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]


def cells(shape: Shape, factor: int) -> Shape:
    """Shape of one stored row for a boundary of `shape` (C, H, W); (16, 7, 7) and 2 give (16, 4, 4)."""
    if factor == 1 or len(shape) != 3:
        return shape
    channels, height, width = shape
    return channels, -(-height // factor), -(-width // factor)


def average(x: Tensor, factor: int) -> Tensor:
    """Mean of x (B, C, H, W) over each cell, (B, C, ⌈H/2⌉, ⌈W/2⌉); x itself for factor 1."""
    return x if factor == 1 or x.dim() != 4 else F.avg_pool2d(x, factor, ceil_mode=True)


def upsample(cell_values: Tensor, shape: Shape, factor: int) -> Tensor:
    """US: cell values (B, C, ⌈H/2⌉, ⌈W/2⌉) copied to the pixels of `shape` (C, H, W)."""
    if factor == 1 or len(shape) != 3:
        return cell_values
    pixels = F.interpolate(cell_values, scale_factor=factor, mode="nearest")
    return pixels[:, :, : shape[1], : shape[2]]


def pixels_per_cell(
    shape: Shape, factor: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> Tensor | float:
    """m: pixels in a cell; 1.0 without downsampling, else (⌈H/2⌉, ⌈W/2⌉), 4 inside and 2 or 1 at odd edges."""
    if factor == 1 or len(shape) != 3:
        return 1.0
    rows, columns = (
        torch.tensor([min(factor, size - i) for i in range(0, size, factor)], dtype=dtype, device=device)
        for size in shape[1:]
    )
    return rows[:, None] * columns[None, :]
