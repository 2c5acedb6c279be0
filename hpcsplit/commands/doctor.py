"""`doctor`: what this place has for a run, and what is slow or broken in it.

Exit code: 0 when nothing is broken, 70 otherwise.  It never hangs: each part has a time limit.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from hpcsplit.doctor import disks, finding, messages, start
from hpcsplit.doctor.finding import Finding, Status
from hpcsplit.doctor.limits import Guard
from hpcsplit.errors import DONE, HpcsplitError
from hpcsplit.host.launchers import claimed_size, launcher_name, launcher_rank

if TYPE_CHECKING:
    from hpcsplit.wire.mpi import Wire

BROKEN = HpcsplitError.exit_code

_IMPORT_LIMIT_S = 120.0  # torch from a busy shared file system
_MPI_LIMIT_S = 150.0  # above the one before: it waits for the slowest rank
_PART_LIMIT_S = 90.0  # above the limits of the parts inside, and above waiting for a slower rank


def doctor_command(scratch: Path | None, as_json: bool) -> int:
    """Examine, and print on rank 0; the exit code, the same on all ranks."""
    began = time.monotonic()
    with Guard(f"rank {launcher_rank()} on {start.host_name()}") as guard:
        guard.expect("the import of torch and mpi4py", _IMPORT_LIMIT_S)
        try:
            from hpcsplit.wire.mpi import Wire
        except (ImportError, OSError, RuntimeError) as error:
            return BROKEN if launcher_rank() else _print(_without_mpi(error, scratch), as_json)
        guard.expect("the start of MPI", _MPI_LIMIT_S)
        wire = Wire()
        if wire.size == 1 < claimed_size()[0] and launcher_rank():
            return BROKEN  # one of several that do not know of each other: the first speaks for all
        try:
            findings = _examine(wire, guard, scratch, began)
            code: int = wire.share(DONE if wire.rank else _print(findings, as_json))[0]
            guard.expect("the end of MPI", _MPI_LIMIT_S)
            wire.close()
            return code
        except BaseException as error:
            _fail(wire, error)


def _examine(wire: Wire, guard: Guard, scratch: Path | None, began: float) -> list[Finding]:
    """All findings on rank 0; the other ranks bring their part and return []."""
    from hpcsplit.wire.mpi import library

    mpi = library()
    guard.expect("the look at cores and devices", _PART_LIMIT_S)
    here = start.look_around(wire.rank, wire.local_rank)
    ready_s = max(wire.share(time.monotonic() - began))
    places = msgspec.convert(wire.share(msgspec.to_builtins(here)), list[start.Surroundings])
    guard.expect("messages between neighbours", _PART_LIMIT_S)
    edges = wire.share(messages.measure(wire))
    guard.expect("reading and writing of files", _PART_LIMIT_S)
    several = len({p.host for p in places}) > 1
    files = _files(wire.rank, wire.local_rank, scratch, here.host if several else "")
    files_of_all = msgspec.convert(wire.share(msgspec.to_builtins(files)), list[list[Finding]])
    guard.expect("the self-test of device memory and HDF5", _PART_LIMIT_S)
    if wire.rank:
        return []
    return [
        start.launch(wire.size, wire.library, launcher_name()),
        *start.slurm(here),
        messages.mpi(mpi),
        start.start_up(ready_s),
        *start.ranks(places),
        *messages.neighbours(edges, places),
        messages.device_memory(mpi, here),
        *chain(*files_of_all),
        disks.hdf5(Path.cwd()),
        start.packages(places),
    ]


def _files(rank: int, local_rank: int, scratch: Path | None, host: str) -> list[Finding]:
    """Rank 0 looks at the present folder, and one rank of each node at the node's scratch."""
    if local_rank:
        return []
    disk = disks.Disks()
    folder = [disks.present_folder(disk)] if rank == 0 else []
    return folder + disks.scratch(disk, scratch, host)


def _without_mpi(error: Exception, scratch: Path | None) -> list[Finding]:
    """The findings that one process can have without MPI."""
    advice = (
        f"{type(error).__name__}: {error}. Install one beside this Python (pip install mpich), or load the module of "
        "your site's MPI, or let MPI4PY_LIBMPI name its libmpi.so"
    )
    mpi = Finding("MPI", "cannot be loaded", Status.BROKEN, advice)
    return [mpi, *_files(0, 0, scratch, ""), disks.hdf5(Path.cwd())]


def _print(findings: Sequence[Finding], as_json: bool) -> int:
    """Print them; the exit code."""
    if as_json:
        print(finding.as_json(findings), flush=True)
    else:
        finding.show(findings)
    return BROKEN if finding.worst(findings) == Status.BROKEN else DONE


def _fail(wire: Wire, error: BaseException) -> NoReturn:
    """Say what went wrong and end all ranks."""
    with suppress(Exception):
        what = str(error)
        if not isinstance(error, HpcsplitError):
            what = f"{type(error).__name__}: {error}"
            print("".join(traceback.format_exception(error)), file=sys.stderr)
        print(f"hpcsplit: rank {wire.rank} on {wire.host}: {what}", file=sys.stderr, flush=True)
    wire.abort(BROKEN)
