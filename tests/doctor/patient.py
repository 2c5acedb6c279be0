"""`hpcsplit` with something wrong on one rank: python -m tests.doctor.patient RANK WHAT doctor …

raise   the look at cores and devices raises               stuck   the same, inside C and with the interpreter's lock
nompi   MPI's library cannot be loaded, on all ranks       nothing
"""

from __future__ import annotations

import ctypes
import os
import sys


def stuck(*_: object) -> None:
    ctypes.PyDLL(None).sleep(60)  # a PyDLL keeps the lock: no Python code of this process runs any more


def fail(*_: object) -> None:
    raise ZeroDivisionError("an accident")


def main() -> int:
    rank, what, *argv = sys.argv[1:]
    from hpcsplit.cli import main as command
    from hpcsplit.commands import doctor
    from hpcsplit.doctor import start

    if what == "nompi":
        os.environ["MPI4PY_LIBMPI"] = "/nowhere/libmpi.so"
    elif os.environ.get("PMI_RANK", "0") == rank and what != "nothing":
        doctor._PART_LIMIT_S = 3.0
        start.look_around = {"raise": fail, "stuck": stuck}[what]  # type: ignore[assignment]
    sys.argv[1:] = argv
    return command()


if __name__ == "__main__":
    sys.exit(main())
