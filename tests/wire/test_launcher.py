"""A launcher of another MPI starts N processes that each believe to be alone; the environment gives it away."""

from __future__ import annotations

import pytest

from hpcsplit.errors import LaunchError
from hpcsplit.wire.launcher import check_stages, check_world, claimed_size

VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES, "PMIX_SIZE", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(variable, raising=False)


def test_no_launcher_is_one_process() -> None:
    assert claimed_size() == (1, "")
    check_world(1, "MPICH")


@pytest.mark.parametrize("variable", VARIABLES)
def test_alone_where_two_were_started(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(LaunchError, match=f"{variable} says that 2 processes were started, but MPI .* sees only"):
        check_world(1, "MPICH")
    check_world(2, "MPICH")


def test_a_value_that_is_no_number_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2(x3)")
    assert claimed_size() == (1, "")


def test_stages_and_ranks_must_agree() -> None:
    with pytest.raises(LaunchError, match=r"2 ranks were started, run\.stages asks for 3: start with mpirun -n 3"):
        check_stages(2, 3, "run.stages")
    with pytest.raises(LaunchError, match="1 rank was started"):
        check_stages(1, 3, "run.stages")
    check_stages(3, 3, "run.stages")
    check_stages(3, 0, "run.stages")
