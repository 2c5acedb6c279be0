"""No two quantities of a record are mistaken for one another: each is given seconds, bytes or a value of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from hpcsplit.engine import rank
from hpcsplit.engine.evaluate import Scores
from hpcsplit.engine.job import Job
from hpcsplit.engine.persist import EpochSums
from hpcsplit.engine.probe import Signals
from hpcsplit.engine.rank import rank_program
from hpcsplit.run.records import EpochRecord
from hpcsplit.wire import lockstep
from hpcsplit.wire.port import Meter, Share
from tests.engine.conftest import Make
from tests.engine.test_evaluation import Kept

STAGES = 3  # the first keeps no rows
# Seconds and bytes of an epoch on rank 0; the others have 3 and 9 times as many.  What is truly measured is tiny.
EXPOSED, IMBALANCE, IO, TURN, TO_PREV, TO_NEXT = 2e4, 3e4, 5e4, 7e4, 11 << 30, 13 << 30
TRAIN, REFRESH, SAVE, EVALUATE = 1e6, 2e6, 4e6, 8e6  # of the clock that all ranks share
SCORES = Scores(
    loss=0.1, test_loss=0.2, train_accuracy=0.3, test_accuracy=0.4, test_accuracy_bn=0.5,
    test_loss_ema=0.8, test_accuracy_ema=0.9, validation_loss=0.6, validation_accuracy=0.7,
)  # fmt: skip


def share_of(job: Job) -> int:
    return int(3**job.rank)


@pytest.fixture
def recorded(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[EpochRecord]]:
    """recorded(turns): the records of S P P of two stages, where the clock and the meters show what is set above."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(rank, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def slow(name: str, seconds: float, charge: bool = False) -> None:
        real = getattr(rank, name)

        def program(job: Any, *args: Any, **more: Any) -> Generator[Any, Any, Any]:
            found = yield from real(job, *args, **more)
            yield Share(None)  # all have begun
            if job.rank == 0:
                clock.now += seconds
            if charge:
                traffic, k = (yield Meter()), share_of(job)
                traffic.exposed_s += EXPOSED * k
                traffic.imbalance_s += IMBALANCE * k
                traffic.turn_s += TURN * k
                traffic.sent_bytes_prev += TO_PREV * k
                traffic.sent_bytes_next += TO_NEXT * k
                if job.store:
                    job.store.io_wait_s += IO * k
            yield Share(None)
            return found

        monkeypatch.setattr(rank, name, program)

    slow("train_epoch", TRAIN, charge=True)
    slow("refresh", REFRESH)
    slow("save", SAVE)
    slow("evaluate", EVALUATE)

    def get(turns: bool) -> list[EpochRecord]:
        kept = Kept()
        if not turns:  # over MPI a stage has its process to itself
            add = EpochSums.add_seconds
            monkeypatch.setattr(EpochSums, "add_seconds", lambda sums, **parts: add(sums, **parts | {"turn": 0.0}))
        jobs = make(STAGES, kept, f"run-{turns}", schedule__epochs=3, schedule__ratio="1:2", checkpoint__every_epochs=1)
        lockstep.run([rank_program(job) for job in jobs])
        return kept.past

    return get


@pytest.mark.parametrize("turns", [True, False])
def test_seconds_and_bytes_of_a_stage(recorded: Callable[[bool], list[EpochRecord]], turns: bool) -> None:
    serial, parallel, _ = recorded(turns)
    for record in (serial, parallel):
        for k, stage in enumerate(record.stages):
            share = 3**k
            assert stage.stage == k
            assert stage.exposed_comm_s == pytest.approx(EXPOSED * share, abs=10)
            assert stage.imbalance_s == pytest.approx(IMBALANCE * share, abs=10)
            io = IO * share if k else 0.0
            assert stage.exposed_io_s == pytest.approx(io, abs=10)
            waits = (EXPOSED + IMBALANCE) * share + io
            assert stage.compute_s == pytest.approx(TURN * share if turns else TRAIN - waits, abs=40)
            assert stage.sent_bytes == pytest.approx((TO_PREV + TO_NEXT) * share, abs=1 << 26)


def test_seconds_of_an_epoch(recorded: Callable[[bool], list[EpochRecord]]) -> None:
    serial, first, second = recorded(True)
    assert [r.train_s for r in (serial, first, second)] == [TRAIN] * 3
    assert [r.refresh_s for r in (serial, first, second)] == [0.0, REFRESH, 0.0]
    assert [r.checkpoint_s for r in (serial, first, second)] == [0.0, SAVE, SAVE]
    assert serial.wall_s == TRAIN + EVALUATE
    assert first.wall_s == TRAIN + REFRESH + SAVE + EVALUATE
    assert second.wall_s == TRAIN + SAVE + EVALUATE
    assert [r.samples_per_s for r in (serial, first, second)] == [100 / TRAIN] * 3


def test_the_slowest_rank_counts_and_rank_0_saves(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with seconds of their own: training 20 and 50, refresh 7 and 3, save 2 and 4."""
    real, kept = EpochSums.add_seconds, Kept()
    calls = [{"train": 20.0, "refresh": 7.0, "save": 2.0}, {"train": 50.0, "refresh": 3.0, "save": 4.0}]
    monkeypatch.setattr(EpochSums, "add_seconds", lambda sums, **seconds: real(sums, **(seconds | calls.pop(0))))
    lockstep.run([rank_program(job) for job in make(2, kept, schedule__epochs=1)])
    (record,) = kept.past
    assert (record.train_s, record.refresh_s, record.checkpoint_s) == (50.0, 7.0, 2.0)
    assert record.samples_per_s == 2.0
    assert record.wall_s == pytest.approx(29.0, abs=5.0)


def test_scores_and_signals(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(job: Any, *_: Any, **__: Any) -> Generator[Any, Any, Scores]:
        yield Share(None)
        return SCORES

    def signals(job: Any, *_: Any) -> Generator[Any, Any, Signals]:
        yield Share(None)
        return Signals(0.11 + job.rank, 0.13 + job.rank, 0.17 + job.rank, 0.19 + job.rank, 0.23 + job.rank)

    kept = Kept()
    monkeypatch.setattr(rank, "evaluate", scores)
    monkeypatch.setattr(rank, "probe", signals)
    lockstep.run([rank_program(job) for job in make(3, kept, schedule__epochs=3, schedule__ratio="1:1")])
    for record in kept.past:
        assert Scores(**{name: getattr(record, name) for name in vars(SCORES)}) == SCORES
        exact = record.phase == "serial"
        found = [(s.label_signal, s.label_ratio, s.penalty_signal, s.rounding) for s in record.stages]
        named = [Signals(0.11 + k, 0.13 + k, 0.17 + k, 0.19 + k, 0.23 + k) for k in range(3)]
        assert found == [
            (1.0, 1.0, s.penalty_signal, None)
            if exact
            else (s.label_signal, s.label_ratio, s.penalty_signal, s.rounding)
            for s in named
        ]
        assert record.stages[0].violation == 0.0
        if exact:
            assert [stage.violation for stage in record.stages[1:]] == [s.violation_next for s in named[:-1]]


def test_what_is_not_finite_is_not_measured(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(job: Any, action: Any) -> Generator[Any, Any, Signals]:
        yield Share(None)
        return Signals(math.nan, math.inf, -math.inf, 0.25)

    monkeypatch.setattr(rank, "probe", probe)
    kept = Kept()
    lockstep.run([rank_program(job) for job in make(2, kept, schedule__epochs=2, schedule__ratio="1:1")])
    first, last = kept.past[1].stages
    assert (first.label_signal, first.label_ratio, first.penalty_signal, first.violation) == (None, None, None, 0.0)
    assert last.label_signal is None
