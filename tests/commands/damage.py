"""Checkpoints changed on purpose, with or without sums that fit."""

from __future__ import annotations

import shutil
from pathlib import Path

from hpcsplit.files.atomic import sha256_file
from hpcsplit.files.checkpoints import SUMS
from hpcsplit.files.hdf5 import set_attributes


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def sign(folder: Path) -> None:
    """Write the sums of the files as they are now."""
    names = sorted(p.name for p in folder.iterdir() if p.name != SUMS)
    (folder / SUMS).write_text("".join(f"{sha256_file(folder / name)}  {name}\n" for name in names))


def within_an_epoch(folder: Path, step: int) -> Path:
    """A copy of a checkpoint that says it was made `step` steps later."""
    inside = folder.with_name(folder.name[:-6] + f"{step:06d}")
    shutil.copytree(folder, inside)
    set_attributes(inside / "manifest.h5", {"step": step})
    sign(inside)
    return inside
