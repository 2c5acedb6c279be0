"""Ways in which a file of rows goes bad."""

from __future__ import annotations

import os
from pathlib import Path

from hpcsplit.files.hdf5 import rows_layout, set_attributes

DAMAGES = ["row", "index", "swap", "half", "absent", "incomplete"]


def harm(path: Path, damage: str) -> None:
    layout = rows_layout(path)
    size, first = layout.row_bytes, layout.rows_offset
    with open(path, "r+b") as file:
        descriptor = file.fileno()
        if damage == "row":  # one bit of one row
            byte = os.pread(descriptor, 1, first + 5 * size + 3)[0]
            os.pwrite(descriptor, bytes([byte ^ 1]), first + 5 * size + 3)
        elif damage == "swap":
            rows = os.pread(descriptor, 2 * size, first)
            os.pwrite(descriptor, rows[size:] + rows[:size], first)
        elif damage == "index":
            os.pwrite(descriptor, os.pread(descriptor, 8, layout.index_offset), layout.index_offset + 8)
        elif damage == "half":
            os.ftruncate(descriptor, layout.size_bytes // 2)
    if damage == "absent":
        path.unlink()
    elif damage == "incomplete":
        set_attributes(path, {"complete": 0})
