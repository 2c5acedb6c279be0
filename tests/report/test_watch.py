"""Rank 0 compares the cuts with what the stages have taken, once, when that means something."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.report.console import Console
from hpcsplit.report.watch import Watch
from hpcsplit.run.records import EpochRecord, Phase, Records, StageRecord

Said = Callable[..., str]


@pytest.fixture
def said(tmp_path: Path) -> Said:
    """Runs epochs of two stages that compute so long, and gives what rank 0 has said."""

    def run(*seconds: tuple[float, float], phase: Phase = "parallel", cuts: tuple[int, ...] = (4,)) -> str:
        out = io.StringIO()
        console = Console(len(seconds), stream=out)
        watch = Watch(console, Records(tmp_path / "records.jsonl"), [phase] * len(seconds), [1.0] * 8, cuts)
        for epoch, pair in enumerate(seconds):
            stages = tuple(StageRecord(k, compute_s=each) for k, each in enumerate(pair))
            watch.epoch_done(
                EpochRecord(epoch, phase, loss=1.0, test_accuracy=0.5, train_s=3.0, wall_s=3.0, stages=stages)
            )
        console.close()
        return out.getvalue()

    return run


def test_better_cuts_are_named_once(said: Said) -> None:
    text = said((30.0, 10.0), (30.0, 10.0))
    assert text.count("split.cuts = [3]") == 1
    assert "1.33 x as fast" in text


@pytest.mark.parametrize(
    ("pair", "more"),
    [
        ((10.0, 10.2), {}),
        ((0.03, 0.01), {}),
        ((30.0, 10.0), {"phase": "serial"}),
        ((30.0, 10.0), {"cuts": ()}),
    ],
    ids=["balanced", "too short", "an exact epoch", "no cuts to compare"],
)
def test_otherwise_nothing_is_said(said: Said, pair: tuple[float, float], more: dict[str, Any]) -> None:
    assert "split.cuts" not in said(pair, **more)
