"""A run goes on with other stages than the ones that its checkpoint was written by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit.files.checkpoints import complete
from hpcsplit.files.hdf5 import read_tensors
from tests.checkpoint.conftest import STOP_AT_ONCE, THREE_STEPS, Run
from tests.checkpoint.starts import Course, weights
from tests.engine.small import CUTS, records, write_toml
from tests.engine.small import weights as weights_of

EXACT = {**THREE_STEPS, "method__name": "backprop", "schedule__epochs": 3, "optim__name": "adam", "optim__lr": 1e-3}


def stages(count: int, cuts: list[int] | None = None) -> tuple[object, ...]:
    return "--split.cuts", CUTS[count] if cuts is None else cuts, "--run.stages", count


def saved(course: Course) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint, whatever file they are in."""
    everything: dict[str, torch.Tensor] = {}
    for path in sorted(complete(course.checkpoints)[0].glob("stage-*.h5")):
        everything |= read_tensors(path)[0]
    return everything


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """An exact run of one stage."""
    course = Course(tmp_path_factory.mktemp("alone"), **EXACT)
    assert course.start(CUTS[1])
    return course


@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 4), (4, 2), (2, 3)])
def test_exact_epochs_end_with_the_same_weights(tmp_path: Path, before: int, after: int, alone: Course) -> None:
    course = Course(tmp_path, **EXACT)
    assert not course.start(CUTS[before], stop=(0, 2))
    assert not course.start(CUTS[after], stop=(1, 2))
    assert course.start(CUTS[before])
    assert weights(course) == weights(alone)
    assert all(torch.equal(t, saved(alone)[name]) for name, t in saved(course).items())


def test_random_layers_draw_the_same_numbers_wherever_the_cuts_are(tmp_path: Path) -> None:
    changes = {**EXACT, "model__name": "tests.engine.tinynet:noisy"}
    alone, course = Course(tmp_path / "alone", **changes), Course(tmp_path / "run", **changes)
    assert alone.start(CUTS[1])
    assert not course.start(CUTS[3], stop=(0, 2))
    assert course.start(CUTS[2])
    assert weights(course) == weights(alone)


@pytest.mark.parametrize(
    ("method", "aux"),
    [
        ("al", "keep"),
        ("al", "copy"),
        ("gsadmm", "keep"),
        ("gsam", "copy"),
        pytest.param("gsadmm", "copy", marks=pytest.mark.weekly),
        pytest.param("gsam", "keep", marks=pytest.mark.weekly),
    ],
)
def test_variables_are_taken_up_where_a_boundary_survives(
    tmp_path: Path, method: str, aux: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cuts [2, 4] become [4], then [1, 4]: the rows before block 4 are those of a run that kept its cuts."""
    changes: dict[str, Any] = {**THREE_STEPS, "method__name": method, "checkpoint__aux": aux, "schedule__epochs": 6}
    changes |= {"schedule__ratio": "1:5"}
    run = Run(write_toml(tmp_path / "c.toml", 3, **changes), tmp_path / "run")
    assert [run.go(*STOP_AT_ONCE) for _ in range(2)] == [75, 75]
    capsys.readouterr()

    assert run.go(*STOP_AT_ONCE, *stages(2, [4])) == 75
    said = capsys.readouterr().out
    assert "the stages were cut at [2, 4] and are cut at [4] now" in said
    assert "auxiliary variables taken up: block-004." in said
    assert "computed anew" not in said

    assert run.go(*STOP_AT_ONCE, *stages(3, [1, 4])) == 75
    said = capsys.readouterr().out
    assert "auxiliary variables taken up: block-004." in said
    assert "computed anew at new boundaries: block-001." in said
    assert run.go(*stages(3, [1, 4])) == 0
    assert [record["recomputed"] for record in records(run.folder)] == [False, False, False, True, True, True]
    rest = {path.name.split(".")[0] for path in (run.folder / "aux").iterdir()}
    assert rest == {"block-001", "block-004"}


@pytest.mark.parametrize("aux", ["keep", "copy"])
def test_the_rows_are_the_checkpoints_own(tmp_path: Path, aux: str) -> None:
    """The same boundary, other blocks before and behind it: nothing is recomputed, so a frozen pair of cuts that comes
    back after one epoch in between has lost nothing but that epoch's difference."""
    changes = {**THREE_STEPS, "checkpoint__aux": aux, "schedule__epochs": 4, "schedule__ratio": "1:3"}
    run = Run(write_toml(tmp_path / "c.toml", 2, **changes), tmp_path / "run")
    whole = Run(run.toml, tmp_path / "whole")
    assert whole.go() == 0
    assert [run.go(*STOP_AT_ONCE) for _ in range(2)] == [75, 75]
    assert run.go(*STOP_AT_ONCE, *stages(3, [3, 5])) == 75  # block 3 survives; block 5 is new
    assert run.go(*stages(2)) == 0
    assert weights_of(run.folder)[:2] == weights_of(whole.folder)[:2]
    assert [record["recomputed"] for record in records(run.folder)] == [False, False, True, True]


def test_no_boundary_survives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(write_toml(tmp_path / "c.toml", 2, **THREE_STEPS), tmp_path / "run")
    assert [run.go(*STOP_AT_ONCE) for _ in range(2)] == [75, 75]
    capsys.readouterr()
    assert run.go(*stages(3, [1, 5])) == 0
    said = capsys.readouterr().out
    assert "the auxiliary variables are computed anew: the checkpoint has those of other boundaries" in said


def test_within_an_epoch_too(tmp_path: Path) -> None:
    changes = {**EXACT, "data__batch_size": 15}
    whole, course = Course(tmp_path / "whole", **changes), Course(tmp_path / "run", **changes)
    assert whole.start(CUTS[2])
    for count, place in [(2, (0, 0)), (3, (1, 0)), (4, (2, 1))]:
        assert not course.start(CUTS[count], stop=place)
    assert course.start(CUTS[1])
    assert weights(course) == weights(whole)
    assert [record.loss for record in course.records] == [record.loss for record in whole.records]


def test_layer_wise_variables_move_with_their_layers(tmp_path: Path) -> None:
    """pdADMM's variables stand at every layer: with any stages the iterates are the same."""
    changes = {
        "data__batch_size": 15,
        "data__augment": False,
        "model__name": "mlp",
        "model__depth": 5,
        "model__width": 8,
        "method__name": "pdadmm",
        "schedule__epochs": 4,
        "schedule__ratio": "0:1",
        "schedule__warmup": 0,
        "checkpoint__aux": "copy",
    }
    whole, course = Course(tmp_path / "whole", **changes), Course(tmp_path / "run", **changes)
    assert whole.start([3])
    for cuts, place in [([3], (0, 0)), ([1, 2], (0, 6)), ([2, 3, 5], (1, 0)), ([4], (2, 0))]:
        assert not course.start(cuts, stop=place)
    assert course.start([1])
    assert weights(course) == weights(whole)
