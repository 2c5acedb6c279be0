"""Real MNIST in torchvision's layout, where a packed copy lies beside the project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (PACKED / "MNIST").is_dir() or not (PACKED / "unpack.py").is_file():
        pytest.skip(f"no packed MNIST in {PACKED}")
    root = tmp_path_factory.mktemp("unpacked")
    subprocess.run([sys.executable, "-B", "unpack.py", ".", str(root), "mnist"], cwd=PACKED, check=True, timeout=120)
    return root
