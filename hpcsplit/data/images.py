"""One image file as pixels of the shape that a network takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hpcsplit.errors import DataError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The image uint8 (C, H, W): turned as its EXIF data say, in grey or colour, its shorter side resized to the window
    H x W, of which the centre is taken.  An image of that very size keeps its pixels.

    DataError, naming the file, where it is no image, broken, or C is neither 1, 3 nor 4.
    """
    channels, height, width = shape
    if channels not in _MODES:
        raise DataError(f"{path}: an image has 1, 3 or 4 channels, the network takes {channels}; give arrays (.npy)")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits; convert() would cut off what is above 255
                image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
            image = image.convert(_MODES[channels])
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as an image ({reason}); replace or remove it") from None
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
