"""The examples of docstrings and of docs/python.md run as they stand."""

from __future__ import annotations

import doctest
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hpcsplit
from hpcsplit.commands import library, own_loop, past

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_docstrings(tmp_path: Path) -> None:
    """In this order: a run is trained before it is looked at."""
    found: dict[str, Any] = {"folder": tmp_path, "torch": torch, "nn": nn, "partial": partial}
    for module in (hpcsplit, library, past, own_loop):
        tried = doctest.testmod(module, extraglobs=found)
        assert tried.failed == 0, module.__name__
        assert tried.attempted > 0 or module is hpcsplit


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, block after block."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    values: dict[str, Any] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), values)
    assert len(blocks) == 3
    assert values["outputs"].shape == (5, 10)
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
