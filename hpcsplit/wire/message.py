"""A message as one buffer: a header (name, index, time of sending, dtype, shape, memory format) and the payload."""

from __future__ import annotations

import struct

import torch

from hpcsplit.wire.port import MAX_DIMENSIONS, MAX_NAME_BYTES

# name, index, sent at, dtype, dimensions, channels last, shape
_HEADER = struct.Struct(f"<{MAX_NAME_BYTES}sqdBBB5x{MAX_DIMENSIONS}q")
_HEADER_BYTES = 128  # keeps the payload aligned
_DTYPES = torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.int32, torch.int8


def body(t: torch.Tensor) -> torch.Tensor:
    """A buffer (bytes,) uint8 with the values of a tensor on any device, in its memory format, and no header yet.

    From a GPU the copy is under way in the current stream when this returns; the buffer is pinned then.
    """
    buffer = room(_HEADER_BYTES + t.nbytes, t.device)
    _payload(buffer, t.dtype, tuple(t.shape), _is_nhwc(t)).copy_(t.detach(), non_blocking=t.is_cuda)
    return buffer


def room(nbytes: int, device: torch.device) -> torch.Tensor:
    """An empty buffer (bytes,) uint8 on the host for what goes to `device` or comes from it."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def stamp(buffer: torch.Tensor, name: str, index: int, t: torch.Tensor, *, sent_at: float) -> None:
    """Write the header of the message with the values of `t`, sent at this time (s since 1970)."""
    shape = tuple(t.shape) + (0,) * (MAX_DIMENSIONS - t.dim())
    _HEADER.pack_into(
        bytes_of(buffer), 0, name.encode(), index, sent_at, _DTYPES.index(t.dtype), t.dim(), _is_nhwc(t), *shape
    )


def opened(buffer: torch.Tensor) -> tuple[str, int, float, torch.Tensor]:
    """Name, index, time of sending and the tensor, which lives in the buffer."""
    name, index, sent_at, dtype, dims, nhwc, *shape = _HEADER.unpack_from(bytes_of(buffer))
    return name.rstrip(b"\0").decode(), index, sent_at, _payload(buffer, _DTYPES[dtype], tuple(shape[:dims]), nhwc)


def bytes_of(buffer: torch.Tensor) -> memoryview:
    """The memory of a buffer, shared."""
    return buffer.numpy().data


def _is_nhwc(t: torch.Tensor) -> bool:
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def _payload(buffer: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], nhwc: bool) -> torch.Tensor:
    """The tensor that lives behind the header, in its own memory format."""
    flat = buffer[_HEADER_BYTES:].view(dtype)
    if not nhwc:
        return flat.view(shape)
    b, c, h, w = shape
    return flat.view(b, h, w, c).permute(0, 3, 1, 2)
