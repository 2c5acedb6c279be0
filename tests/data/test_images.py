from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpcsplit.data.images import looks, read_image
from hpcsplit.errors import DataError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_every_mode_becomes_bytes_of_the_shape(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    if mode == "I;16":
        Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(COLOURS).convert(mode).save(path)
    for channels in (1, 3):
        got = read_image(path, (channels, 6, 6))
        assert got.dtype == np.uint8
        assert got.shape == (channels, 6, 6)
    if mode in ("RGB", "RGBA"):
        assert np.array_equal(got, COLOURS.transpose(2, 0, 1))
    if mode == "I;16":
        assert np.array_equal(got[0], COLOURS[..., 0])


def test_an_image_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    Image.fromarray(np.kron(COLOURS[:2, :3], np.ones((8, 8, 1), np.uint8))).save(tmp_path / "a.png", exif=exif)
    got = read_image(tmp_path / "a.png", (3, 24, 16))
    upright = np.rot90(np.kron(COLOURS[:2, :3], np.ones((8, 8, 1), np.uint8)), k=-1)
    assert np.array_equal(got, upright.transpose(2, 0, 1))
    assert looks(tmp_path / "a.png") == (False, (24, 16))


def test_the_shorter_side_is_resized_and_the_middle_cut_out(tmp_path: Path) -> None:
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", (1, 8, 8))[0], wide[:, 8:16])
    assert abs(read_image(tmp_path / "a.png", (1, 4, 4))[0, :, 1:3].mean() - 200) < 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "the file is empty"), (b"no image at all", "of no known format"), (None, "No such file"), (1, "truncated")],
)
def test_a_file_that_is_no_image_is_named(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if content == 1:
        Image.fromarray(np.kron(COLOURS, np.ones((9, 9, 1), np.uint8))).save(path)
        content = path.read_bytes()[:300]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png cannot be read as an image: .*{said}"):
        read_image(path, (3, 54, 54))
