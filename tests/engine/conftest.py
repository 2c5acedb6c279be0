"""Jobs whose stores are closed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.engine.job import Job, Observer
from tests.engine.small import config, make_jobs

Make = Callable[..., list[Job]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """make(stages, observer=None, section__key=value ...): the jobs of a small run."""
    made: list[Job] = []

    def build(stages: int, observer: Observer | None = None, place: str = "run", **changes: Any) -> list[Job]:
        jobs = make_jobs(config(stages, **changes), stages, tmp_path / place, observer)
        made.extend(jobs)
        return jobs

    yield build
    for job in made:
        if job.store:
            job.store.close()
