"""What every benchmark says beside its numbers, and how it writes them down."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hpcsplit.run.provenance import processor


def facts() -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "hardware": f"{os.cpu_count()} x {processor()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def publish(folder: Path, name: str, lines: Sequence[str], values: Any, **about: Any) -> None:
    """Print a benchmark's table, and write it as NAME.txt and its values as NAME.json."""
    print("\n".join(lines))
    print(f"\n{write(folder, name, lines, values, **about)}; table and values: {folder}")


def write(folder: Path, name: str, lines: Sequence[str], values: Any, **about: Any) -> str:
    """Write NAME.txt, with the command before the table and the hardware behind it, and NAME.json; the last line."""
    known = {**facts(), **about}
    said = ", ".join(f"{key} {value}" for key, value in known.items())
    command = " ".join(["tools/bench", name, *sys.argv[1:]])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("\n".join([command, *lines, "", said]) + "\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps({"facts": known, "values": values}, indent=1) + "\n", "utf-8")
    return said
