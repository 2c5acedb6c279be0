"""Packed rows: their size, their error, and that rounding twice is rounding once."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcsplit.terms.quantise import KINDS, pack, part_shapes, rounded, unpack
from tests.fuzz import examples

DTYPES = [torch.float32, torch.float64]
BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
FLUSHED = 127 * 2.0**-126  # largest element of the rows that int8 takes for zero


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(5))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(BITS[one.dtype]), other.view(BITS[other.dtype]))


def bits_of_rows(bits: Literal[32, 64]) -> st.SearchStrategy[list[list[float]]]:
    """Two rows of 1 to 6 numbers each, of any size; NaN and infinities too."""
    number = st.floats(width=bits) | st.floats(-4, 4, width=bits)
    return st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(number, min_size=n, max_size=n), min_size=2, max_size=2)
    )


@pytest.mark.parametrize("kind", KINDS)
@given(rows=bits_of_rows(32), wide=bits_of_rows(64))
@settings(max_examples=examples(300), deadline=None)
def test_rounding_twice_is_rounding_once(kind: str, rows: list[list[float]], wide: list[list[float]]) -> None:
    for x in (torch.tensor(rows, dtype=torch.float32), torch.tensor(wide, dtype=torch.float64)):
        once = rounded(x, kind)
        assert same_bits(rounded(once, kind), once)


@given(rows=bits_of_rows(32))
@settings(max_examples=examples(300), deadline=None)
def test_int8_errs_by_half_a_step_of_its_row(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float32).nan_to_num(0.0).double()
    step = x.abs().amax(1, keepdim=True) / 127
    bound = step / 2 * 1.004 + FLUSHED * (step * 127 <= FLUSHED)
    assert ((rounded(x.float(), "int8").double() - x).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_with_every_scale_that_can_be_rounded_up_or_down(dtype: torch.dtype) -> None:
    """The largest of a row, 127 times a number beside the middle of two neighbours in bfloat16: the code is 127."""
    scales = (1 + torch.arange(128, dtype=torch.float64) / 128) * 2.0**-20
    middle = 127 * (scales + 2.0**-28)
    nudge = 1 + torch.tensor([-(2.0**-22), 0.0, 2.0**-22], dtype=torch.float64)
    top = (middle[:, None] * nudge).flatten().to(dtype)
    rows = torch.stack([top, -top, top / 3, top / 500, torch.zeros_like(top)], 1)
    codes, scale = pack(rows, "int8")
    assert (codes[:, 0] == 127).all()
    assert (codes[:, 1] == -127).all()
    once = rounded(rows, "int8")
    assert ((once - rows).abs() <= scale.to(dtype)[:, None] / 2 * (1 + 1e-5)).all()
    assert same_bits(rounded(once, "int8"), once)
    again, scale_again = pack(once, "int8")
    assert torch.equal(again, codes)
    assert torch.equal(scale_again, scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_float16_errs_by_half_a_unit_in_the_last_place(dtype: torch.dtype) -> None:
    x = random(50, 7, dtype=dtype) * torch.logspace(-9, 4, 7, dtype=dtype)
    error = (rounded(x, "float16") - x).abs()
    assert (error <= torch.maximum(x.abs() * 2.0**-11, torch.full_like(x, 2.0**-25)) * (1 + 1e-6)).all()
    assert error.max() > 0


def test_float32_is_the_very_tensor() -> None:
    x = random(3, 2, dtype=torch.float32)
    assert pack(x, "float32")[0] is x
    assert rounded(x, "float32") is x
    wide = random(3, 2)
    assert torch.equal(rounded(wide, "float32"), wide.float().double())


@pytest.mark.parametrize(
    ("kind", "dtype"), [("float16", torch.float32), ("float16", torch.float64), ("float32", torch.float64)]
)
def test_numbers_out_of_range_saturate(kind: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(getattr(torch, kind)).max
    x = torch.tensor([[1.1, -1.1, 1.0, -1.0]], dtype=dtype) * largest
    assert rounded(x, kind).tolist() == [[largest, -largest, largest, -largest]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_number_passes_int8(dtype: torch.dtype) -> None:
    x = torch.tensor([[torch.finfo(dtype).max, 1.0, -torch.finfo(torch.float32).max]], dtype=dtype)
    once = rounded(x, "int8")
    assert once.to(torch.float32).isfinite().all()
    assert once[0, 2].item() == pytest.approx(-torch.finfo(torch.float32).max, rel=0.005)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so(dtype: torch.dtype, bad: float) -> None:
    x = torch.tensor([[1.0, bad, 2.0], [1.0, 0.5, 0.0]], dtype=dtype)
    for kind in ("float32", "float16"):
        torch.testing.assert_close(rounded(x, kind), x, equal_nan=True, rtol=0, atol=0)
    once = rounded(x, "int8")
    assert once[0].isnan().all()
    torch.testing.assert_close(once[1], x[1], rtol=0, atol=0.5 / 127)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_of_almost_nothing_become_zeros_in_int8(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, -0.0], [1e-45, 0.0], [1e-38, -1e-40], [0.9 * FLUSHED, 0.0]], dtype=dtype)
    assert not pack(x, "int8")[0].any()
    assert same_bits(rounded(x, "int8"), torch.zeros_like(x))
    assert rounded(torch.full((1, 1), 1.1 * FLUSHED, dtype=dtype), "int8").item() > 0


def test_each_row_has_a_scale_of_its_own() -> None:
    x = torch.tensor([[127.0, 3.0], [127e-6, 3e-6]])
    assert pack(x, "int8")[0].tolist() == [[127, 3], [127, 3]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 10), (1, 1), (3, 2, 5, 5), (0, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_knows_the_parts(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random(*shape, dtype=dtype)
    before = x.clone()
    parts = pack(x, kind)
    assert part_shapes(shape, kind) == tuple((tuple(part.shape), part.dtype) for part in parts)
    assert unpack(parts, kind, dtype).shape == shape
    assert unpack(parts, kind, dtype).dtype == dtype
    assert torch.equal(unpack(parts, kind, dtype), rounded(x, kind))
    assert torch.equal(x, before)


def test_bytes() -> None:
    x = random(8, 16, 7, 7, dtype=torch.float32)
    sizes = {kind: sum(part.nbytes for part in pack(x, kind)) for kind in KINDS}
    assert sizes["float32"] == x.nbytes
    assert sizes["float16"] == x.nbytes / 2
    assert sizes["int8"] == x.nbytes / 4 + 2 * 8


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_makes_no_difference(kind: str) -> None:
    x = random(4, 3, 5, 6, dtype=torch.float32)
    assert torch.equal(rounded(x.contiguous(memory_format=torch.channels_last), kind), rounded(x, kind))
