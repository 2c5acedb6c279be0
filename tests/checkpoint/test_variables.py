"""A run that was stopped within parallel epochs goes on, whatever its checkpoints keep of the auxiliary variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from hpcsplit.engine import forward, rank
from hpcsplit.engine.job import Job
from hpcsplit.engine.resume import resume
from hpcsplit.errors import LaunchError
from hpcsplit.schedule.actions import Refresh
from hpcsplit.store.hdf5 import HdfStore
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Verb
from tests.checkpoint.starts import Course, Place, learned
from tests.engine.small import store_of

SHORT: dict[str, Any] = {
    "data__limit_train": 70,  # seven steps
    "data__limit_test": 20,
    "data__eval_train": 20,
    "data__batch_size": 10,
    "data__pool": True,
    "model__name": "mlp",
    "model__depth": 5,
    "model__width": 6,
    "checkpoint__every_epochs": 0,
    "schedule__epochs": 7,
    "schedule__ratio": "1:2",  # S PP S PP S
}
METHODS: dict[str, dict[str, Any]] = {
    "penalty": {},
    "al": {},
    "gsadmm": {},
    "gsadmm in two passes": {"method__name": "gsadmm", "method__update": "set"},
    "gsam": {},
}
PDADMM = {"method__name": "pdadmm", "method__grow": [2, 5], "method__grow_every": 2, "data__augment": False}
PDADMM |= {"schedule__epochs": 4, "schedule__ratio": "0:1", "schedule__warmup": 0}  # PP PP: it starts anew
STOPS: list[Place] = [(1, 0), (1, 6), (3, 1), (4, 1)]  # within epochs; one at the end of the second one
ROWS = [("copy", "hdf5"), ("copy", "memory"), ("keep", "hdf5")]
NO_ROWS = [("recompute", "hdf5"), ("recompute", "memory"), ("keep", "memory")]
ANEW = [False, True, True, False, True, True, False]
Start = Callable[..., Course]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """whole(method): what the records of a run that is never stopped say."""

    @cache
    def run(method: str) -> list[dict[str, Any]]:
        place = tmp_path_factory.mktemp("whole")
        course = Course(place, **SHORT | {"method__name": method} | (METHODS | {"pdadmm": PDADMM})[method])
        assert course.start([2], store__kind="memory")
        return learned(course)

    return run


@pytest.fixture
def begin(tmp_path: Path) -> Start:
    """begin(method, aux, store): a run that has not been started."""

    def make(method: str, aux: str, store: str) -> Course:
        own = {"method__name": method, **(METHODS | {"pdadmm": PDADMM})[method]}
        return Course(tmp_path, **{**SHORT, **own, "checkpoint__aux": aux, "store__kind": store})

    return make


@pytest.mark.parametrize(("aux", "store"), ROWS)
@pytest.mark.parametrize("method", METHODS)
def test_with_its_rows_a_run_ends_as_one_that_was_never_stopped(
    begin: Start, whole: Any, method: str, aux: str, store: str
) -> None:
    course = begin(method, aux, store)
    for place in STOPS:
        assert not course.start([2], stop=place)
    assert course.start([2])
    assert learned(course) == whole(method)
    assert not any("computed anew" in line for line in course.kept.said)


def test_a_stage_alone_goes_on_as_one_that_was_never_stopped(begin: Start, tmp_path: Path) -> None:
    whole, parts = (Course(tmp_path / name, **SHORT) for name in ("whole", "parts"))
    assert whole.start([])
    assert not parts.start([], stop=(1, 3))
    assert [path.name for path in parts.checkpoints.glob("epoch-*")] == ["epoch-0001-step-000006"]
    assert parts.start([])
    assert learned(parts) == learned(whole)


@pytest.mark.parametrize("method", METHODS)
def test_every_switch_starts_the_variables_anew(begin: Start, refreshed: Refreshed, method: str) -> None:
    """Multipliers too, which the phase before has moved away from 0."""
    assert begin(method, "copy", "memory").start([2], prepare=refreshed.watch)
    assert [action.epoch for action in refreshed.actions] == [1, 4]


@pytest.mark.parametrize("method", METHODS)
def test_an_exact_epoch_is_compared_with_the_variables_before_it(whole: Any, method: str) -> None:
    """Else the test above would compare nothing with nothing there."""
    for number, exact in enumerate((0, 3, 6)):
        stages = whole(method)[exact]["stages"]
        known = [stages[1]["violation"] is not None, stages[0]["penalty_signal"] is not None]
        assert known == [number > 0] * 2


@pytest.mark.parametrize(("aux", "guarded"), [("keep", True), ("copy", False)])
def test_rows_that_a_checkpoint_refers_to_are_guarded_after_a_resume(begin: Start, aux: str, guarded: bool) -> None:
    course = begin("al", aux, "hdf5")
    assert not course.start([2], stop=(1, 0))
    found: list[bool] = []

    def overwrite_both(jobs: list[Job]) -> None:
        lockstep.run([resume(job) for job in jobs])
        store, everything = store_of(jobs[1]), [np.arange(70)]
        for _ in range(2):
            try:
                store.start(everything)
            except AssertionError as error:
                found.append("a checkpoint refers to" in str(error))
                raise KeyboardInterrupt from None
            store.write(0, store.read(0))
            store.finish(9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        course.start([2], prepare=overwrite_both)
    assert found == [True] * guarded


@pytest.mark.parametrize("taking", ["adopt", "restore"])
def test_rows_are_not_computed_anew_where_too_many_files_are_open(begin: Start, taking: str) -> None:
    """The rows are there: it is the process that is refused."""
    course = begin("al", {"adopt": "keep", "restore": "copy"}[taking], "hdf5")
    assert not course.start([2], stop=(1, 0))
    with patch.object(HdfStore, taking, side_effect=LaunchError("files open")), pytest.raises(LaunchError):
        course.start([2])
    assert course.start([2])


@pytest.mark.parametrize(("aux", "store"), NO_ROWS)
@pytest.mark.parametrize("method", METHODS)
def test_without_its_rows_a_run_goes_on_from_those_of_a_forward_pass(
    begin: Start, whole: Any, refreshed: Refreshed, method: str, aux: str, store: str
) -> None:
    course = begin(method, aux, store)
    for place in STOPS:
        assert not course.start([2], stop=place, prepare=refreshed.watch)
    assert course.start([2], prepare=refreshed.watch)
    assert [record.recomputed for record in course.records] == ANEW
    second = 1 if "two passes" in method else 2  # the stop at step 6 is within the first pass of the same epoch
    assert [action.epoch for action in refreshed.actions if action.recomputed] == [1, second, 4]
    assert learned(course)[0] == whole(method)[0]
    check_sensible(course, whole(method))


@pytest.mark.parametrize(("aux", "store"), [*ROWS, ("recompute", "memory")])
@pytest.mark.parametrize("method", METHODS)
def test_with_other_stages_only_new_boundaries_start_anew(
    begin: Start, whole: Any, refreshed: Refreshed, method: str, aux: str, store: str
) -> None:
    """The boundary before block 2 survives the first change and not the second one."""
    course = begin(method, aux, store)
    assert not course.start([2], stop=(1, 0), prepare=refreshed.watch)
    assert not course.start([2, 4], stop=(4, 0), prepare=refreshed.watch)
    assert course.start([3], prepare=refreshed.watch)
    assert [record.recomputed for record in course.records] == ANEW
    assert [action.missing for action in refreshed.actions] == [False, aux != "recompute", False, False]
    assert learned(course)[0] == whole(method)[0]
    check_sensible(course, whole(method))


@pytest.mark.parametrize(("aux", "store"), [*ROWS, *NO_ROWS])
def test_variables_of_layers(begin: Start, whole: Any, refreshed: Refreshed, aux: str, store: str) -> None:
    """Every layer of pdADMM has its own, wherever the cuts are."""
    course = begin("pdadmm", aux, store)
    for cuts, place in [([2], (0, 0)), ([2], (0, 3)), ([1, 3], (2, 0))]:
        assert not course.start(cuts, stop=place, prepare=refreshed.watch)
    assert course.start([4], prepare=refreshed.watch)
    if (aux, store) in ROWS:
        assert [r["weights_sha256"] for r in learned(course)] == [r["weights_sha256"] for r in whole("pdadmm")]
        assert not any(record.recomputed for record in course.records)
    else:
        assert [record.recomputed for record in course.records] == [True, True, True, True]
        check_sensible(course, whole("pdadmm"))


def check_sensible(course: Course, whole: list[dict[str, Any]]) -> None:
    assert [record.epoch for record in course.records] == list(range(len(whole)))
    for ours, theirs in zip(learned(course), whole, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(math.isfinite(value) for value in ours["terms"].values()) if theirs["terms"] else True
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.3)


# ------------------------------------------------------------------------------------------------ every refresh


class Refreshed:
    """Compares the variables with their definition after every refresh."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.actions: list[Refresh] = []  # of rank 0
        self.refresh = forward.refresh

    def watch(self, jobs: list[Job]) -> None:
        self.jobs = jobs

    def __call__(self, job: Job, action: Refresh, names: Collection[str] | None = None) -> Generator[Verb, Any, None]:
        if all(job is not watched for watched in self.jobs):
            yield from self.refresh(job, action, names)
            return
        ids = np.arange(job.train_size)
        before = job.store.peek(ids) if job.store and names is not None and job.store.epoch is not None else {}
        yield from self.refresh(job, action, names)
        if job.rank == 0:
            self.actions.append(action)
        if job.store:
            rows = job.store.peek(ids)
            expected = self.defined(job) | {name: before[name] for name in before if name not in (names or ())}
            assert rows.keys() == expected.keys()
            assert [name for name in rows if not torch.equal(rows[name], expected[name])] == []

    def defined(self, job: Job) -> dict[str, torch.Tensor]:
        """The variables of this stage as a forward pass through the stages before it starts them."""
        parts: dict[str, list[torch.Tensor]] = {}
        for ids in job.in_order(job.train_size):
            y = self.jobs[0].train.images(ids)
            for other in self.jobs[: job.rank + 1]:
                x, y = y, other.stage.infer(y)
            own = job.method.first_rows(job.stage, x, torch.empty(0))
            for v in job.own_variables():
                forward = v.start_rows(x if v.boundary == "input" else y) if v.start == "forward" else own.get(v.name)
                shape = (len(ids), *v.row_shape(job.stage.place))
                parts.setdefault(v.name, []).append(torch.zeros(shape) if forward is None else forward)
        return {name: torch.cat(rows) for name, rows in parts.items()}


@pytest.fixture
def refreshed(monkeypatch: pytest.MonkeyPatch) -> Refreshed:
    watching = Refreshed()
    monkeypatch.setattr(rank, "refresh", watching)
    return watching
