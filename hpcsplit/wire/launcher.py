"""What the environment says about how this process was started, before MPI is touched."""

from __future__ import annotations

import os

from hpcsplit.errors import LaunchError

_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS", "MPI_LOCALNRANKS")
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


def launcher_rank() -> int:
    """This process's rank as the launcher's variables tell it: where MPI does not work, one process speaks for all."""
    for variable in _RANKS:
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return int(os.environ.get("SLURM_PROCID", "0")) if "SLURM_STEP_NUM_TASKS" in os.environ else 0


def claimed_size() -> tuple[int, str]:
    """The largest number of processes that the launcher's variables speak of, and the variable; (1, "") without any."""
    found = [(int(os.environ[v]), v) for v in _SIZES if os.environ.get(v, "").isdigit()]
    return max(found, default=(1, ""))


def check_world(world_size: int, library: str) -> None:
    """Refuse to be one of several processes that each believe to be alone.

    Raises:
        LaunchError: the launcher started more processes than MPI knows of.
    """
    size, variable = claimed_size()
    if world_size == 1 and size > 1:
        raise LaunchError(
            f"{variable} says that {size} processes were started, but MPI ({library}) sees only "
            "this one: the launcher belongs to another MPI. Start with the mpirun beside this Python, or with "
            "srun --mpi=pmi2 for MPICH"
        )


def check_stages(world_size: int, stages: int, source: str) -> None:
    """Refuse a world size that the configuration does not fit.

    Raises:
        LaunchError: `source` (the key that fixes it) asks for another number of stages.
    """
    if stages and stages != world_size:
        raise LaunchError(
            f"{world_size} rank{'s were' if world_size > 1 else ' was'} started, {source} asks for {stages}: "
            f"start with mpirun -n {stages}, or change {source}"
        )
