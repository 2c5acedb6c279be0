"""Rows (B, …) in fewer bits for their way to a neighbour: "float32" as they are, "float16", "int8" with a scale a row.

Rounding twice is rounding once, bit for bit, so that a sender can keep what its neighbour gets.  For int8 the scale
s = max |row| / 127 is rounded to bfloat16: its 8 bits times a code's 7 fit into float32, hence k s is exact, the
largest code is 127 again and 127 s / 127 gives s back.  An element is then at most s/2 off; s is 0.4 % off.

A finite number stays finite: beyond its kind's largest it saturates.  A number that is not finite is never hidden: it
stays what it is, but with int8, where it leaves no scale, its whole row becomes NaN.  Too small for their kind, hence
zero, are float16 up to 3e-8 and int8 rows with nothing above 1.5e-36.
"""

from __future__ import annotations

import torch
from torch import Tensor

Shape = tuple[int, ...]
Parts = tuple[Tensor, ...]

FLOATS = {"float32": torch.float32, "float16": torch.float16}
KINDS = (*FLOATS, "int8")


def pack(rows: Tensor, kind: str) -> Parts:
    """What is sent for rows (B, …), float32 or float64: see `part_shapes`; float32 rows as "float32" are not copied."""
    if kind != "int8":
        return (_saturated(rows, FLOATS[kind]),)
    rows = _saturated(rows, torch.float32)
    scale = (rows.abs().flatten(1).amax(1) / 127).to(torch.bfloat16)
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, 0.0, scale)
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    s = _beside(scale, rows)
    codes = torch.where(s > 0, (rows / s).round(), 0.0)  # within ± 127: max |row| / s is less than 127.5
    return codes.to(torch.int8), scale


def unpack(parts: Parts, kind: str, dtype: torch.dtype) -> Tensor:
    """The rows (B, …) in `dtype`, float32 or float64, that `parts` stand for."""
    rows = parts[0].to(dtype)
    return rows * _beside(parts[1].to(dtype), rows) if kind == "int8" else rows


def rounded(rows: Tensor, kind: str) -> Tensor:
    """What the receiver of `rows` has, in the dtype of `rows`."""
    return unpack(pack(rows, kind), kind, rows.dtype)


def part_shapes(shape: Shape, kind: str) -> tuple[tuple[Shape, torch.dtype], ...]:
    """Shape and dtype of every part of packed rows of `shape` (B, …): what a receiver waits for."""
    if kind != "int8":
        return ((shape, FLOATS[kind]),)
    return (shape, torch.int8), (shape[:1], torch.bfloat16)


def _saturated(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in `dtype`; finite numbers beyond its range become its largest."""
    if rows.dtype == dtype:
        return rows
    largest = torch.finfo(dtype).max
    return torch.where(rows.isinf(), rows, rows.clamp(-largest, largest)).to(dtype)


def _beside(scale: Tensor, rows: Tensor) -> Tensor:
    """A scale (B,) shaped to go with rows (B, …)."""
    return scale.view(-1, *[1] * (rows.dim() - 1))
