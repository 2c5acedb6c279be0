"""A configuration file from text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Toml = Callable[[str], Path]


@pytest.fixture
def toml(tmp_path: Path) -> Toml:
    """Write a file of this text and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "experiment.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
