"""What the environment says about how this process was started, before MPI is touched."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hpcsplit.errors import LaunchError

_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "SLURM_STEP_NUM_TASKS", "MPI_LOCALNRANKS")
_LAUNCHERS = {"hydra_pmi_proxy", "pmi_proxy", "slurmstepd", "orted", "prted", "mpirun", "mpiexec", "prterun"}
_LOOK_S = 1.0
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


class Launcher:
    """The process that has started this rank, and what stands between the two, such as a shell script.

    Where one of them is killed, nobody ends the ranks that are left.  Processes above the launcher do not matter: a
    shell may end before what was started in the background.
    """

    def __init__(self) -> None:
        self._died = ""
        parents = _parents()
        threading.Thread(target=self._watch, args=(parents,), name="launcher", daemon=True).start()

    def died(self) -> str:
        """Which one is gone, in words; "" while all live."""
        return self._died

    def _watch(self, parents: Sequence[tuple[int, str]]) -> None:
        first, poll, words = os.getppid(), select.poll(), {}
        for pid, name in parents:
            with suppress(OSError, AttributeError):  # an old kernel
                descriptor = os.pidfd_open(pid)
                poll.register(descriptor, select.POLLIN)
                words[descriptor] = f"{name} (process {pid}), which has started this rank, is gone"
        while os.getppid() == first:
            if gone := poll.poll(1000 * _LOOK_S):
                self._died = words[gone[0][0]]
                return
        self._died = f"process {first}, which has started this rank, is gone"


def _parents() -> list[tuple[int, str]]:
    """The processes above this one up to the launcher, with their names; none where that is not among them."""
    found, pid = [], os.getppid()
    while pid > 1:
        try:
            before, _, after = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
        except OSError:
            return []
        found.append((pid, before.partition("(")[2]))
        if found[-1][1] in _LAUNCHERS:
            return found
        pid = int(after.split()[1])
    return []


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
