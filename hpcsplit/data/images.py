"""A file of an image as the bytes that a network takes, whatever its size and mode."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hpcsplit.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (C, H, W) of this shape, C = 1 (grey) or 3 (RGB).

    Turned as its EXIF data say; 16 bits become 8; transparency is left out.  One of another size is resized, its
    shorter side to that of the shape (bilinear, antialiased), and the middle is cut out.
    DataError names a file that is none, is empty, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return pixels(image, shape)
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(f"{path} cannot be read as an image: {_why(path, error)}") from None


def pixels(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Of an image that is open, as `read_image`."""
    image = ImageOps.exif_transpose(image)
    channels, height, width = shape
    image = in_bytes(image).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        scale = max(height / image.height, width / image.width)
        size = (max(width, round(scale * image.width)), max(height, round(scale * image.height)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    return np.array(image, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)


def in_bytes(image: Image.Image) -> Image.Image:
    """With at most 8 bits a channel: of 16 bits the upper ones."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.clip(np.asarray(image), 0, 255).astype(np.uint8))
    return image.convert("RGBA") if image.mode in ("P", "PA", "LA") and "transparency" in image.info else image


def looks(path: Path) -> tuple[bool, tuple[int, int]]:
    """Whether it is grey, and its height and width as `read_image` turns it; it is not decoded.  DataError as there."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            width, height = image.size[::-1] if turned else image.size
            return image.mode in GREY, (height, width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {_why(path, error)}") from None


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        if not path.stat().st_size:
            return "the file is empty"
    except OSError:
        pass
    if isinstance(error, UnidentifiedImageError):
        return "it is of no known format"
    return " ".join(str(error).split()) or type(error).__name__
