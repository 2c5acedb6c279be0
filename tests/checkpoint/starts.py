"""Runs in this process without their command: started as often as one likes, stopped where one likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from hpcsplit.assemble import Around, make_jobs
from hpcsplit.engine.job import STOP, Job, Observer
from hpcsplit.engine.rank import rank_program
from hpcsplit.plan.prepare import Prepared
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import EpochRecord
from hpcsplit.schedule.actions import Stop
from hpcsplit.wire import lockstep
from tests.engine.small import CUTS, config

Place = tuple[int, int]  # epoch and step of its pass, from 0


class Kept(Observer):
    """What rank 0 tells, over all starts of a run."""

    def __init__(self) -> None:
        self.past: list[EpochRecord] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def resumed(self, first_epoch: int) -> None:
        self.past = [record for record in self.past if record.epoch < first_epoch]

    def epoch_done(self, record: EpochRecord) -> None:
        self.past.append(record)


class Course:
    """One run of the small network, with `section__key=value` changes."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.changes, self.kept = folder, changes, Kept()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def records(self) -> list[EpochRecord]:
        return self.kept.past

    def start(
        self,
        cuts: Sequence[int] = CUTS[2],
        stop: Place | None = None,
        prepare: Callable[[list[Job]], None] = lambda jobs: None,
        **changes: Any,
    ) -> bool:
        """Go on with stages at these cuts; with `stop` a signal comes there, and is obeyed when all have heard of it.
        Whether the run is done."""
        stages, cpu, threads = len(cuts) + 1, torch.device("cpu"), torch.get_num_threads()
        torch.set_num_threads(1)
        self.folder.mkdir(parents=True, exist_ok=True)
        cfg = config(stages, **{**self.changes, **changes, "split__cuts": list(cuts)})
        prepared = Prepared(tuple(cuts), (1.0,) * stages, "the data", None)
        jobs = make_jobs(Setting(cfg), prepared, RunDir(self.folder), range(stages), cpu, Around(self.kept))
        if stop is not None:
            stop_at(jobs[0], stop)
        try:
            prepare(jobs)
            with patch("os.fsync"):  # no machine crashes here
                ended: list[Stop] = lockstep.run([rank_program(job) for job in jobs])
        finally:
            torch.set_num_threads(threads)
            for job in jobs:
                if job.store:
                    job.store.close()
        assert all(end == ended[0] for end in ended)
        return ended[0].done


def learned(course: Course) -> list[dict[str, Any]]:
    """The whole records, but for times and memory."""
    return [record.learned() for record in course.records]


def weights(course: Course) -> list[str | None]:
    return [record.weights_sha256 for record in course.records]


def told_to_stop(jobs: list[Job]) -> None:
    """Let a signal be there already."""
    jobs[0].stop_reason = lambda: "told to stop"


def stop_at(job: Job, place: Place) -> None:
    """Let a signal come to this rank at the end of this step."""
    request = job.request

    def told() -> int:
        if job.stage.position == place:
            job.stop_reason = lambda: "told to stop"
        return STOP if job.stop_reason() else request()

    job.request = told  # type: ignore[method-assign]
