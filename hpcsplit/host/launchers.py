"""What the environment says about how this process was started, before MPI is touched."""

from __future__ import annotations

import os
import select
import shutil
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcsplit.errors import LaunchError
from hpcsplit.host.proc import ancestors

_LOOK_S = 1.0


@dataclass(frozen=True)
class Launcher:
    """What starts ranks."""

    words: str  # for people
    processes: tuple[str, ...] = ()  # what the processes are called of which one is above each rank
    size: str = ""  # the variable in which it tells the number of ranks
    rank: str = ""  # and that in which it tells which one this is
    relays: tuple[str, ...] = ()  # what those are called of which one passes on what the ranks write


_PRTE = ("prterun", "prted", "orterun", "orted")
SLURM = Launcher("srun", ("slurmstepd",), "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", ("srun",))
LAUNCHERS = (  # the one list of them
    Launcher("mpirun of MPICH", ("hydra_pmi_proxy", "pmi_proxy"), "PMI_SIZE", "PMI_RANK", ("mpiexec.hydra",)),
    Launcher("mpirun of Open MPI", _PRTE, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", ("prterun", "orterun")),
    Launcher("a launcher with PMIx", (), "PMIX_SIZE", "PMIX_RANK"),
    SLURM,
    Launcher("mpirun of Intel MPI", (), "MPI_LOCALNRANKS"),
    Launcher("mpirun", ("mpirun",), relays=("mpirun",)),
    Launcher("mpiexec", ("mpiexec",), relays=("mpiexec",)),
    Launcher("PALS", ("palsd",)),
)
_OF_A_RANK = ("PMI", "OMPI_", "PRTE_", "MPI_LOCAL", "HYDI_", "SLURM_")  # how the names of a launcher's variables begin
RELAYS = {process for launcher in LAUNCHERS for process in launcher.relays}
_OF_PROCESS = {process: launcher for launcher in LAUNCHERS for process in launcher.processes}


class LauncherWatch:
    """The process that has started this rank, and what stands between the two, such as a shell script.

    Where one of them is killed, nobody ends the ranks that are left.  Processes above the launcher do not matter: a
    shell may end before what was started in the background.
    """

    def __init__(self) -> None:
        self._died = ""
        family = ancestors(os.getppid())
        known = next((count for count, (name, _) in enumerate(family, 1) if name in _OF_PROCESS), 0)
        parents = family[:known]  # up to the launcher; none where that is not among them
        threading.Thread(target=self._watch, args=(parents,), name="launcher", daemon=True).start()

    def died(self) -> str:
        """Which one is gone, in words; "" while all live."""
        return self._died

    def _watch(self, parents: Sequence[tuple[str, int]]) -> None:
        first, poll, words = os.getppid(), select.poll(), {}
        for name, pid in parents:
            with suppress(OSError, AttributeError):  # an old kernel
                descriptor = os.pidfd_open(pid)
                poll.register(descriptor, select.POLLIN)
                words[descriptor] = f"{name} (process {pid}), which has started this rank, is gone"
        while os.getppid() == first:
            if gone := poll.poll(1000 * _LOOK_S):
                self._died = words[gone[0][0]]
                return
        self._died = f"process {first}, which has started this rank, is gone"


def launcher_name(proc: Path = Path("/proc"), pid: int | None = None) -> str:
    """Who started this process: the nearest ancestor that is known to start ranks; "" when there is none."""
    known = [_OF_PROCESS[name] for name, _ in ancestors(pid or os.getpid(), proc) if name in _OF_PROCESS]
    if not known or (known[0] is SLURM and SLURM.size not in os.environ):  # a batch script is no step
        return ""
    return known[0].words


def mpirun() -> str:
    """The mpirun beside this interpreter, or else one on the PATH (or mpiexec); its bare name where there is none."""
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun") or shutil.which("mpiexec") or beside.name


def alone() -> dict[str, str]:
    """The environment without the variables that make a process a rank of others."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_RANK)}


def launcher_rank() -> int:
    """This process's rank as the launcher's variables tell it: where MPI does not work, one process speaks for all."""
    for launcher in LAUNCHERS:
        told = os.environ.get(launcher.rank, "")
        if told.isdigit() and (launcher is not SLURM or SLURM.size in os.environ):
            return int(told)
    return 0


def claimed_size() -> tuple[int, str]:
    """The largest number of processes that the launcher's variables speak of, and the variable; (1, "") without any."""
    told = [(os.environ.get(launcher.size, ""), launcher.size) for launcher in LAUNCHERS]
    return max(((int(size), variable) for size, variable in told if size.isdigit()), default=(1, ""))


def check_world(world_size: int, library: str) -> None:
    """Refuse to be one of several processes that each believe to be alone: LaunchError where the launcher started more
    than MPI knows of."""
    size, variable = claimed_size()
    if world_size == 1 and size > 1:
        raise LaunchError(
            f"{variable} says that {size} processes were started, but MPI ({library}) sees only "
            "this one: the launcher belongs to another MPI. Start with the mpirun beside this Python, or with "
            "srun --mpi=pmi2 for MPICH"
        )


def check_stages(world_size: int, stages: int, source: str) -> None:
    """Refuse a world size that the configuration does not fit: LaunchError where `source` (the key that fixes it) asks
    for another number of stages."""
    if stages and stages != world_size:
        raise LaunchError(
            f"{world_size} rank{'s were' if world_size > 1 else ' was'} started, {source} asks for {stages}: "
            f"start with mpirun -n {stages}, or change {source}"
        )
