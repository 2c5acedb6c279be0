"""Two processes that swap tensors in device memory: if that crashes, it crashes there.

mpirun -n 2 python -m hpcsplit.doctor.selftest cuda
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from hpcsplit.wire.mpi import Wire

PASSED = "swapped"
_ELEMENTS = (1, 1 << 10, 1 << 20)  # eager, and by rendezvous
_LIMIT_S = 60.0
_OF_A_LAUNCHER = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "MPI_LOCAL", "HYDI_", "SLURM_")


def device_memory_obstacle(device: str, program: Sequence[str] = (), limit_s: float = _LIMIT_S) -> str:
    """Why two new processes cannot swap tensors in the memory of this kind of device; "" when they can.

    `program` takes the place of this very module in tests.
    """
    launcher = _launcher()
    if launcher is None:
        return "cannot be run, since no mpirun is beside this Python or on the PATH"
    command = [launcher, "-n", "2", *(program or (sys.executable, "-m", "hpcsplit.doctor.selftest", device))]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_LAUNCHER)}
    environment |= {"HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user"}  # on this node, whatever the batch system
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"has not ended within {limit_s:g} s"
    code = process.returncode
    if code in (11, 128 + 11, -11):
        return "crashed (segmentation fault)"
    if code:
        return f"ended with exit code {code}"
    return "" if said.count(PASSED) == 2 else "brought wrong numbers"


def _launcher() -> str | None:
    beside = Path(sys.executable).parent / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun") or shutil.which("mpiexec")


def swapped_in_place(wire: Wire, device: torch.device, elements: int) -> bool:
    """Whether two ranks can swap tensors in the memory of the device, without staging; may end the process."""
    import torch

    peer = 1 - wire.rank
    mine = torch.full((elements,), float(wire.rank), device=device)
    theirs = torch.full_like(mine, -1.0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wire.comm.Sendrecv(mine, dest=peer, sendtag=2, recvbuf=theirs, source=peer, recvtag=2)
    return bool((theirs == float(peer)).all())


def main(kind: str) -> int:
    """One of the two processes."""
    import torch

    from hpcsplit.wire.mpi import Wire

    wire = Wire()
    device = torch.device(kind, wire.rank % torch.cuda.device_count()) if kind == "cuda" else torch.device(kind)
    if wire.size == 2 and all(swapped_in_place(wire, device, elements) for elements in _ELEMENTS):
        print(PASSED, flush=True)
    wire.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
