"""Every time and number of bytes stands in its own field of a record: here no two of them are the same."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcsplit.engine import rank
from hpcsplit.engine.job import Job
from hpcsplit.store.store import MemoryStore
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Side, Traffic
from tests.checkpoint.starts import Course
from tests.engine.small import CUTS

TRAIN, EVALUATE, REFRESH, SAVE = 100000.0, 10000.0, 1000.0, 100.0  # what rank 0 takes for each
EXPOSED, IMBALANCE, IO = 2.0, 3.0, 5.0  # of a message sent, and of a batch read
STEPS = 4  # of 100 samples


class Counted(Traffic):
    """Every message costs the same; stages do not take turns."""

    turn_s = property(lambda self: 0.0, lambda self, value: None)

    def count(self, side: Side, size_bytes: int) -> None:
        super().count(side, size_bytes)
        self.exposed_s += EXPOSED
        self.imbalance_s += IMBALANCE


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Course:
    """A run S PP by a clock that only the parts above move."""
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now

    def taking(
        seconds: float, part: Callable[..., Generator[Any, Any, Any]]
    ) -> Callable[..., Generator[Any, Any, Any]]:
        def run(job: Job, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            result = yield from part(job, *args, **kwargs)
            clock.now += seconds if job.rank == 0 else 0.0
            return result

        return run

    def read(self: MemoryStore, step: int) -> dict[str, Any]:
        rows = MemoryStore.read(self, step)
        self.io_wait_s += IO
        return rows

    def prepare(jobs: list[Job]) -> None:
        for job in jobs:
            if job.store:
                job.store.read = read.__get__(job.store)  # type: ignore[method-assign]

    monkeypatch.setattr(rank, "time", clock)
    for name, seconds in (("train_epoch", TRAIN), ("evaluate", EVALUATE), ("refresh", REFRESH), ("save", SAVE)):
        monkeypatch.setattr(rank, name, taking(seconds, getattr(rank, name)))
    monkeypatch.setattr(lockstep, "Traffic", Counted)
    made = Course(tmp_path, schedule__epochs=3, schedule__ratio="1:2", store__kind="memory", checkpoint__aux="copy")
    assert made.start(CUTS[2], prepare=prepare)
    return made


def test_times_of_an_epoch(course: Course) -> None:
    for record, refresh, save in zip(course.records, (0.0, REFRESH, 0.0), (0.0, SAVE, SAVE), strict=True):
        assert record.train_s == TRAIN
        assert record.refresh_s == refresh
        assert record.checkpoint_s == save
        assert record.wall_s == TRAIN + EVALUATE + refresh + save
        assert record.samples_per_s == pytest.approx(100 / TRAIN)


def test_times_of_a_stage(course: Course) -> None:
    """Exact: an activation there, a gradient back.  Parallel: x there, λ back; stage 1 has the rows."""
    for record in course.records:
        for stage in record.stages:
            io = IO * STEPS if record.phase == "parallel" and stage.stage == 1 else 0.0
            assert stage.exposed_comm_s == EXPOSED * STEPS
            assert stage.imbalance_s == IMBALANCE * STEPS
            assert stage.exposed_io_s == pytest.approx(io, abs=1.0)
        first = record.stages[0]
        assert first.compute_s == pytest.approx(TRAIN - (EXPOSED + IMBALANCE) * STEPS)


def test_bytes_of_a_stage(course: Course) -> None:
    boundary = 4 * 8 * 7 * 7  # float32
    assert [[s.sent_bytes for s in r.stages] for r in course.records] == [[100 * boundary] * 2] * 3
