"""Whole runs of the layer-wise methods: stages, stores and interruptions change no bit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcsplit.engine.job import Job, Observer
from hpcsplit.engine.rank import rank_program
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.run.records import EpochRecord
from hpcsplit.wire import lockstep
from tests.engine.conftest import Make
from tests.engine.small import records, train_here, weights, write_toml
from tests.wire.launch import needs_mpi, python

CUTS = {1: [], 2: [2], 3: [1, 3], 4: [1, 2, 3]}
PDADMM: dict[str, Any] = {
    "data__limit_train": 60,
    "data__batch_size": 25,  # rows of a block: 25, 25 and 10
    "data__augment": False,
    "data__pool": True,  # 768 features
    "model__name": "mlp",
    "model__depth": 3,
    "model__width": 16,
    "schedule__ratio": "0:1",
    "schedule__warmup": 0,
    "schedule__epochs": 6,
    "method__name": "pdadmm",
    "method__fista_steps": 20,
}
GROWING = {"method__grow": [1, 2, 3], "method__grow_every": 2}
RISING: dict[str, Any] = {"method__rho": 0.01, "method__nu": 1.0, "method__patience": 3, "schedule__epochs": 12}
DLADMM = PDADMM | {"method__name": "dladmm", "data__batch_size": 0, "method__rho": 0.1, "method__nu": 0.01}
STOP_AT_ONCE = ("--run.time_limit", 1e-6)  # after one epoch, with a checkpoint


def toml(place: Path, stages: int = 2, changes: dict[str, Any] = PDADMM, **more: Any) -> Path:
    place.mkdir(exist_ok=True)
    return write_toml(place / "c.toml", stages, **{**changes, "split__cuts": CUTS[stages], **more})


def finished(place: Path, stages: int = 2, changes: dict[str, Any] = PDADMM, **more: Any) -> list[tuple[int, str]]:
    """The weights after every epoch of a run that was never stopped."""
    assert train_here(toml(place, stages, changes, **more), place / "run") == 0
    return weights(place / "run")


def stopped(place: Path, stages: int = 2, changes: dict[str, Any] = PDADMM, **more: Any) -> list[tuple[int, str]]:
    """The same after a run that was stopped after every epoch and started again."""
    file, codes = toml(place, stages, changes, **more), [75]
    while codes[-1] == 75:
        codes.append(train_here(file, place / "run", *STOP_AT_ONCE))
    assert codes == [75] * 6 + [0]
    return weights(place / "run")


# ------------------------------------------------------------------------------------------------ pdADMM


def test_a_record_has_the_terms_of_the_iteration(tmp_path: Path) -> None:
    finished(tmp_path)
    found = records(tmp_path / "run")
    assert [record["phase"] for record in found] == ["parallel"] * 6
    for record in found:
        assert record["terms"].keys() == {"phi", "objective", "residual_sq", "step_sq", "weights_step_sq"}
        assert min(record["terms"].values()) >= 0
        assert record["aux_loss"] == record["terms"]["phi"] < record["loss"]
    assert all(b["terms"]["objective"] < a["terms"]["objective"] for a, b in pairwise(found))
    assert found[-1]["loss"] < found[0]["loss"]


def test_the_last_record_has_both_sides_of_the_theorem(tmp_path: Path) -> None:
    finished(tmp_path, 3)
    *before, last = (record["theorem"] for record in records(tmp_path / "run"))
    assert before == [None] * 5
    assert 0 < last["gap"] < last["bound"]
    assert last["worst"] < 1
    assert len(last["residuals"]) == 2


def test_the_number_of_stages_changes_no_bit(tmp_path: Path) -> None:
    one = finished(tmp_path / "1", 1)
    assert len({digest for _, digest in one}) == 6
    assert [finished(tmp_path / str(k), k) for k in (2, 3, 4)] == [one] * 3


def test_rows_in_files_and_in_memory_give_the_same_weights(tmp_path: Path) -> None:
    files, memory = (finished(tmp_path / kind, store__kind=kind) for kind in ("hdf5", "memory"))
    assert files == memory


@pytest.mark.parametrize(
    ("aux", "more"),
    [("keep", {}), ("copy", GROWING), ("keep", GROWING), ("copy", {"method__exchange": "int8"})],
    ids=["keep", "copy-growing", "keep-growing", "copy-int8"],
)
def test_stopped_after_every_epoch_it_ends_with_the_same_weights(
    tmp_path: Path, aux: str, more: dict[str, Any]
) -> None:
    assert stopped(tmp_path / "stopped", checkpoint__aux=aux, **more) == finished(tmp_path / "whole", **more)
    assert not any(record["recomputed"] for record in records(tmp_path / "stopped" / "run"))


def test_variables_that_were_not_saved_start_anew_and_the_record_says_so(tmp_path: Path) -> None:
    found = stopped(tmp_path / "stopped", checkpoint__aux="recompute")
    whole = finished(tmp_path / "whole")
    assert [record["recomputed"] for record in records(tmp_path / "stopped" / "run")] == [False, *[True] * 5]
    assert [a == b for a, b in zip(found, whole, strict=True)] == [True, *[False] * 5]


def test_exact_epochs_may_come_first(tmp_path: Path) -> None:
    finished(tmp_path, schedule__warmup=2)
    found = records(tmp_path / "run")
    assert [record["phase"] for record in found] == ["serial"] * 2 + ["parallel"] * 4
    assert [record["refresh_s"] > 0 for record in found] == [False, False, True, False, False, False]


def test_activations_in_bfloat16_start_wide_variables(tmp_path: Path) -> None:
    finished(tmp_path, 3, run__precision="bfloat16")
    objective = [record["terms"]["objective"] for record in records(tmp_path / "run")]
    assert all(later < sooner for sooner, later in pairwise(objective))


# ------------------------------------------------------------------------------------------------ a rising objective


def test_a_rising_objective_ends_the_run_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert train_here(toml(tmp_path, **RISING), run_dir) == 70
    objective = [record["terms"]["objective"] for record in records(run_dir)]
    done = len(objective)
    assert 3 < done < 12
    assert objective[-4] > objective[-3] < objective[-2] < objective[-1]
    [complaint] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hpcsplit: ")]
    assert "the augmented Lagrangian has risen 3 times in a row" in complaint
    assert "raise method.rho = 0.01 or lower method.nu = 1 (method.patience = 3)" in complaint
    assert f"It is epoch {done + 1}; the last checkpoint is whole" in complaint


def test_the_checkpoint_before_the_end_is_whole_and_ends_the_same_way(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    file = toml(tmp_path, **RISING)
    assert train_here(file, run_dir) == 70
    before = weights(run_dir)
    newest = ckpt.complete(run_dir / "checkpoints")[0]
    ckpt.verify(newest, ckpt.listed(newest))
    assert newest.name == f"epoch-{len(before):04d}-step-000000"
    assert train_here(file, run_dir) == 70
    assert weights(run_dir) == before


def test_rises_are_counted_across_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(toml(tmp_path / "whole", **RISING), tmp_path / "whole" / "run") == 70
    sentence, file, code = capsys.readouterr().err, toml(tmp_path / "stopped", **RISING), 75
    while code == 75:
        code = train_here(file, tmp_path / "stopped" / "run", *STOP_AT_ONCE)
    assert code == 70
    assert capsys.readouterr().err == sentence
    assert weights(tmp_path / "stopped" / "run") == weights(tmp_path / "whole" / "run")


# ------------------------------------------------------------------------------------------------ growing


class Layers(Observer):
    """Which hidden layers are the identity after each epoch, and how long the refresh before it took."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.identities: list[list[bool]] = []
        self.refreshed: list[bool] = []

    def epoch_done(self, record: EpochRecord) -> None:
        layers = [m for job in self.jobs for m in job.stage.blocks.modules() if isinstance(m, nn.Linear)]
        eye = torch.eye(16)
        self.identities.append([layer.weight.shape == eye.shape and torch.equal(layer.weight, eye) for layer in layers])
        self.refreshed.append((record.refresh_s or 0.0) > 0)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_growing_run_starts_its_variables_anew_in_each_phase(make: Make, stages: int) -> None:
    seen = Layers()
    seen.jobs = make(stages, seen, **PDADMM | GROWING, split__cuts=CUTS[stages], store__kind="memory")
    lockstep.run([rank_program(job) for job in seen.jobs])
    assert seen.refreshed == [True, False] * 3
    absent = [[hidden < 2, hidden < 3] for hidden in (1, 1, 2, 2, 3, 3)]
    assert seen.identities == [[False, *layers, False] for layers in absent]


# ------------------------------------------------------------------------------------------------ dlADMM


def test_an_iteration_visits_the_samples_in_their_own_order(make: Make) -> None:
    job = make(2, Observer(), **PDADMM, split__cuts=CUTS[2])[0]
    blocks = [ids.tolist() for ids in job.epoch_batches(3, parallel=True)]
    assert blocks == [list(range(25)), list(range(25, 50)), list(range(50, 60))]


def test_dladmm_from_end_to_end(tmp_path: Path) -> None:
    assert len({digest for _, digest in finished(tmp_path, 1, DLADMM)}) == 6
    found = records(tmp_path / "run")
    assert all(record["terms"].keys() == {"phi", "objective", "residual_sq"} for record in found)
    assert found[-1]["terms"]["objective"] < found[0]["terms"]["objective"]
    assert found[-1]["loss"] < found[0]["loss"]
    assert [record["theorem"] for record in found] == [None] * 6


@pytest.mark.parametrize("aux", ["copy", "keep"])
def test_dladmm_stopped_after_every_epoch_ends_with_the_same_weights(tmp_path: Path, aux: str) -> None:
    whole = finished(tmp_path / "whole", 1, DLADMM, store__kind="memory")
    assert stopped(tmp_path / "stopped", 1, DLADMM, checkpoint__aux=aux) == whole


# ------------------------------------------------------------------------------------------------ over MPI


@pytest.mark.slow
@needs_mpi
@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.weekly), 3])
def test_ranks_compute_what_one_process_computes(tmp_path: Path, ranks: int) -> None:
    runs: dict[str, dict[str, Any]] = {"float32": {}, "int8": {"method__exchange": "int8"} | GROWING}
    words: list[Path] = []
    for name, more in runs.items():
        words += [toml(tmp_path / name, ranks, **more), tmp_path / name / "run"]
    ended = python("-m", "tests.whole.several", *words, ranks=ranks)
    assert ended.code == 0, ended.err
    for name, more in runs.items():
        here = finished(tmp_path / f"{name} here", ranks, **more, store__kind="memory")
        assert weights(tmp_path / name / "run") == here, name
        assert len({digest for _, digest in here}) == 6
