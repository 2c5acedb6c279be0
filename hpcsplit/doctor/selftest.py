"""Two processes that swap tensors in device memory: if that crashes, it crashes there.

mpirun -n 2 python -m hpcsplit.doctor.selftest cuda
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from hpcsplit.host.launchers import alone, mpirun

if TYPE_CHECKING:
    import torch

    from hpcsplit.wire.port import Verb

PASSED = "swapped"
_ELEMENTS = (1, 1 << 10, 1 << 20)  # eager, and by rendezvous
_LIMIT_S = 60.0


def device_memory_obstacle(device: str, program: Sequence[str] = (), limit_s: float = _LIMIT_S) -> str:
    """Why two new processes cannot swap tensors in the memory of this kind of device; "" when they can.

    `program` takes the place of this very module in tests.
    """
    if not shutil.which(launcher := mpirun()):
        return "cannot be run, since no mpirun is beside this Python or on the PATH"
    command = [launcher, "-n", "2", *(program or (sys.executable, "-m", "hpcsplit.doctor.selftest", device))]
    process = subprocess.Popen(
        command,
        env=alone() | {"HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user"},  # on this node, whatever the batch system
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


def swap(rank: int, device: torch.device, elements: int) -> Generator[Verb, Any, bool]:
    """Whether this stage of two gets what the other one sends from the memory of the device."""
    import torch

    from hpcsplit.host.device import wait_for
    from hpcsplit.wire.port import NEXT, PREV, Recv, Send

    side, size = PREV if rank else NEXT, (elements,)
    mine = Send(side, "swap", torch.full(size, elements + float(rank), device=device))
    wait_for(device)
    if not rank:
        yield mine
    theirs = yield Recv(side, "swap", size)
    if rank:
        yield mine
    return bool((theirs == elements + 1 - rank).all())


def main(kind: str) -> int:
    """One of the two processes; nothing is staged, so MPI may end it."""
    import torch

    from hpcsplit.wire.mpi import Wire
    from hpcsplit.wire.timing import directly

    wire = Wire()
    device = wire.device = torch.device(kind, wire.rank % torch.cuda.device_count() if kind == "cuda" else 0)
    if wire.size == 2 and all(directly(wire, swap(wire.rank, device, n), _LIMIT_S) for n in _ELEMENTS):
        print(PASSED, flush=True)
    wire.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
