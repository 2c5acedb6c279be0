"""`doctor`: what this place has for a run, and what is slow or broken in it.

Exit code: 0 when nothing is broken, 70 otherwise.  It never hangs: each part has a time limit.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import msgspec

from hpcsplit.doctor import disks, messages, place, start, table
from hpcsplit.doctor.finding import Finding, Status, worst
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
    with Guard(f"rank {launcher_rank()} on {place.host_name()}") as guard:
        guard.expect("the import of torch and mpi4py", _IMPORT_LIMIT_S)
        try:
            from hpcsplit.wire.mpi import Wire
        except (ImportError, OSError, RuntimeError) as error:
            return _without_mpi(error, scratch, as_json)
        guard.expect("the start of MPI", _MPI_LIMIT_S)
        wire = Wire()
        if wire.size == 1 < claimed_size()[0] and launcher_rank():
            return BROKEN  # one of several that do not know of each other: the first speaks for all
        try:
            findings = _examine(wire, guard, scratch, began)
            if wire.rank == 0:
                _print(findings, as_json)
            code: int = wire.share(_exit_code(findings))[0]
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
    here = place.look_around(wire.rank, wire.local_rank)
    ready_s = max(wire.share(time.monotonic() - began))
    places = msgspec.convert(wire.share(msgspec.to_builtins(here)), list[place.Surroundings])
    guard.expect("messages between neighbours", _PART_LIMIT_S)
    edges = wire.share(messages.measure(wire))
    guard.expect("reading and writing of files", _PART_LIMIT_S)
    several = len({p.host for p in places}) > 1
    files = _files(wire.rank, wire.local_rank, scratch, here.host if several else "")
    files_of_all = [
        f for rank in msgspec.convert(wire.share(msgspec.to_builtins(files)), list[list[Finding]]) for f in rank
    ]
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
        *files_of_all,
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


def _without_mpi(error: Exception, scratch: Path | None, as_json: bool) -> int:
    """The findings that one process can have without MPI."""
    if launcher_rank():
        return BROKEN
    advice = (
        f"{type(error).__name__}: {error}. Install one beside this Python (pip install mpich), or load the module of "
        "your site's MPI, or let MPI4PY_LIBMPI name its libmpi.so"
    )
    findings = [Finding("MPI", "cannot be loaded", Status.BROKEN, advice), *_files(0, 0, scratch, "")]
    _print([*findings, disks.hdf5(Path.cwd())], as_json)
    return BROKEN


def _print(findings: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        print(table.as_json(findings), flush=True)
    else:
        table.show(findings)
        sys.stdout.flush()


def _exit_code(findings: Sequence[Finding]) -> int:
    return BROKEN if worst([finding.status for finding in findings]) == Status.BROKEN else DONE


def _fail(wire: Wire, error: BaseException) -> NoReturn:
    """Say what went wrong and end all ranks."""
    with suppress(Exception):
        if not isinstance(error, HpcsplitError):
            print("".join(traceback.format_exception(error)), file=sys.stderr)
        what = str(error) if isinstance(error, HpcsplitError) else f"{type(error).__name__}: {error}"
        print(f"hpcsplit: rank {wire.rank} on {wire.host}: {what}", file=sys.stderr, flush=True)
    wire.abort(BROKEN)
