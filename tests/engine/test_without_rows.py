"""Whole runs of methods that keep no rows, and of one that refreshes them: what the engine does around them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit.engine.job import Observer
from hpcsplit.engine.rank import rank_program
from hpcsplit.errors import NumericalError
from hpcsplit.run.records import EpochRecord
from hpcsplit.wire import lockstep
from tests.checkpoint.conftest import STOP_AT_ONCE, Run
from tests.checkpoint.starts import Kept
from tests.engine.conftest import Make
from tests.engine.small import CUTS, write_toml

DELAYED: dict[str, Any] = {"method__name": "delayed", "schedule__ratio": "0:1", "schedule__warmup": 0}
SEVEN_STEPS = {**DELAYED, "data__batch_size": 15, "schedule__epochs": 3}


class Listener(Observer):
    def __init__(self) -> None:
        self.records: list[EpochRecord] = []
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, *_: object) -> None:
        pass

    def resumed(self, first_epoch: int) -> None:
        pass

    def epoch_done(self, record: EpochRecord) -> None:
        self.records.append(record)


def trained(make: Make, stages: int, **changes: Any) -> tuple[dict[str, torch.Tensor], list[EpochRecord]]:
    listener = Listener()
    jobs = make(stages, listener, place=str(len(changes)), **changes)
    lockstep.run([rank_program(job) for job in jobs])
    return {name: t for job in jobs for name, t in job.stage.state().items()}, listener.records


def test_one_stage_is_exact_training_with_its_augmentation(make: Make) -> None:
    delayed, _ = trained(make, 1, **SEVEN_STEPS)
    exact, _ = trained(make, 1, **SEVEN_STEPS | {"method__name": "backprop", "data__augment": True})
    for name, t in delayed.items():
        torch.testing.assert_close(t, exact[name], rtol=1e-5, atol=1e-7)  # the loss is a mean here, a share there


@pytest.mark.parametrize("phases", ["SPPS", "SPS"])
def test_an_exact_epoch_is_compared_with_the_rows_of_the_parallel_epoch_before_it(make: Make, phases: str) -> None:
    ratio = f"1:{phases.count('P')}"
    _, records = trained(make, 2, schedule__epochs=len(phases), schedule__ratio=ratio)
    assert [record.stages[1].violation is not None for record in records] == [False] + [True] * (len(phases) - 1)


def test_no_row_is_kept_and_no_pass_refreshes_any(make: Make) -> None:
    jobs = make(3, Listener(), **SEVEN_STEPS)
    assert all(job.store is None for job in jobs)
    _, records = trained(make, 3, **SEVEN_STEPS, schedule__order="alternate")
    assert [(r.phase, r.refresh_s) for r in records] == [("parallel", 0.0)] * 3


@pytest.mark.parametrize(("end", "pieces"), [("drain", 1), ("run", 1), ("drain", 2)])
def test_the_record_compares_the_delayed_gradient_with_the_exact_one(make: Make, end: str, pieces: int) -> None:
    changes = {"method__epoch_end": end, "method__microbatches": pieces}
    _, records = trained(make, 3, **SEVEN_STEPS, optim__lr=1e-6, **changes)
    for record in records:
        signals = [(s.label_signal, s.label_ratio, s.violation) for s in record.stages]
        if end == "run" and record.epoch < 2:
            assert signals[0][0] is None
            continue
        for k in (0, 1):
            assert signals[k][0] == pytest.approx(1.0, abs=1e-3)
            assert signals[k][1] == pytest.approx(1.0, abs=1e-2)
        assert all(violation is not None and 0 <= violation < 1e-3 for _, _, violation in signals)


def test_the_signal_falls_with_the_learning_rate(make: Make) -> None:
    _, slow = trained(make, 3, **SEVEN_STEPS, optim__lr=1e-3)
    _, fast = trained(make, 3, **SEVEN_STEPS, optim__lr=0.2, run__seed=0)
    low, high = fast[-1].stages[0].label_signal, slow[-1].stages[0].label_signal
    assert low is not None
    assert high is not None
    assert low < high


def test_the_frozen_control_trains_the_last_stage_only(make: Make) -> None:
    jobs = make(2, Listener(), **SEVEN_STEPS, method__frozen=True)
    before = [[p.detach().clone() for p in job.stage.parameters] for job in jobs]
    lockstep.run([rank_program(job) for job in jobs])
    moved = [
        any(not torch.equal(p, old) for p, old in zip(job.stage.parameters, olds, strict=True))
        for job, olds in zip(jobs, before, strict=True)
    ]
    assert moved == [False, True]


CHUNKED: dict[str, Any] = {"method__name": "chunked", "method__chunk": 4}


@pytest.mark.parametrize("changes", [{}, CHUNKED, CHUNKED | {"method__visits": 3}])
@pytest.mark.parametrize("after", [2, 1, 4])
def test_with_other_cuts_a_run_goes_on_without_what_was_in_flight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], after: int, changes: dict[str, Any]
) -> None:
    run = Run(write_toml(tmp_path / "c.toml", 3, **SEVEN_STEPS | changes), tmp_path / "run")
    assert run.go(*STOP_AT_ONCE) == 75
    capsys.readouterr()
    assert run.go("--split.cuts", CUTS[after], "--run.stages", after) == 0
    assert "is left out: mini-batches in flight" in capsys.readouterr().out


def test_auxiliary_networks_are_compared_with_the_exact_network(make: Make) -> None:
    changes = {"method__name": "auxnet", "method__aux_warmup": 2, "method__aux_width": 4, "schedule__ratio": "1:2"}
    jobs = make(3, Listener(), **changes)
    assert all(job.store is None for job in jobs)
    _, records = trained(make, 3, **changes, data__batch_size=15)
    for record in records:
        if record.phase == "parallel":
            assert record.refresh_s == 0.0
            assert all(s.label_signal is not None and s.violation is not None for s in record.stages)
            assert all(s.violation > 0 for s in record.stages[1:] if s.violation is not None)


def test_chunks_are_compared_with_the_exact_network_and_let_go(make: Make) -> None:
    changes = {"method__name": "chunked", "method__chunk": 2, "method__visits": 3, "schedule__ratio": "1:2"}
    jobs = make(3, Listener(), **changes)
    assert all(job.store is None and job.augments("parallel") for job in jobs)
    visited = jobs[0].epoch_batches(1, parallel=True)
    assert visited is not jobs[0].epoch_batches(1)
    _, records = trained(make, 3, **changes, data__batch_size=15)
    for record in records:
        if record.phase == "parallel":
            assert record.refresh_s == 0.0
            assert all(s.label_signal for s in record.stages)
            assert all(s.violation for s in record.stages[1:])


def test_multipliers_that_grow_without_bound_end_the_run(make: Make) -> None:
    changes = {"method__name": "al", "method__eta_kappa_form": "curvature", "method__eta_kappa": 1e6}
    with pytest.raises(NumericalError, match=r"times the exact gradient \(label ratio; at most 1e\+06\): training has"):
        trained(make, 2, **changes, method__eta_lambda=0.5, schedule__ratio="0:1", schedule__warmup=1)


@pytest.mark.parametrize(("dtype", "said"), [("bfloat16", True), ("float32", False)])
def test_rows_too_coarse_for_what_they_teach_are_said(make: Make, dtype: str, said: bool) -> None:
    kept = Kept()
    changes = {"schedule__ratio": "0:1", "schedule__epochs": 3, "store__kind": "memory", "optim__lr": 1e-6}
    mlp = {
        "model__name": "mlp",
        "model__depth": 3,
        "model__width": 8,
        "split__cuts": [1],
    }  # no other mini-batch moves x
    jobs = make(2, kept, **changes, **mlp, method__beta=1e4, store__dtype=dtype)
    lockstep.run([rank_program(job) for job in jobs])
    sentence = re.compile(
        r"store\.dtype = bfloat16 rounds away \d+% of what the variables teach stage 0; set store\.dtype"
    )
    assert any(map(sentence.match, kept.said)) is said


def test_variables_are_refreshed_every_so_many_parallel_epochs(make: Make) -> None:
    changes = {"method__name": "penalty", "schedule__ratio": "0:1", "schedule__epochs": 6, "schedule__warmup": 1}
    _, records = trained(make, 2, **changes, method__refresh_every=2, method__start="adjoint", store__kind="memory")
    assert [bool(record.refresh_s) for record in records] == [False, True, False, True, False, True]
    _, once = trained(make, 2, **changes, store__kind="memory")
    assert [bool(record.refresh_s) for record in once] == [False, True, False, False, False, False]
