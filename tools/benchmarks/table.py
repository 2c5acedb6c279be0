"""What every benchmark says beside its numbers, and how it writes them down."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch


def facts() -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "hardware": f"{os.cpu_count()} x {cpu_name()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def written(path: Path, values: dict[str, Any]) -> None:
    """Write the numbers as JSON, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in values["facts"].items()) + f"; values: {path}")
