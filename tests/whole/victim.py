"""`hpcsplit` with an accident: python -m tests.whole.victim RANK MOMENT train CONFIG …

MOMENT on rank RANK, numbers are epochs:
    import        killed before anything is imported            job           killed after MPI has started
    serial:0      killed in the second step of that epoch       parallel:2    the same in a parallel epoch
    write:2       killed with half a stage's file written       finish:2      killed before the folder gets its name
    record:2      killed between the record and the checkpoint
    raise:1       raises in the second step                     thread:1      a thread of its own raises
    stop:1        is stopped in the second step (SIGSTOP)     sleep:1       hangs there
    usr1:3        sends SIGUSR1 to mpirun in that epoch          early         the same before MPI has started
    nothing

A kill is SIGKILL to this very process; "dying at T" on the standard error says when.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die() -> None:
    print(f"dying at {time.time()}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    print(f"dying at {time.time()}", file=sys.stderr, flush=True)
    raise ZeroDivisionError("an accident")


def stall(stopped: bool) -> None:
    print(f"dying at {time.time()}", file=sys.stderr, flush=True)
    if stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


def fail_in_a_thread() -> None:
    threading.Thread(target=fail).start()
    time.sleep(30)


def ask_mpirun_to_stop() -> None:
    proxy = os.getppid()
    mpirun = int(Path(f"/proc/{proxy}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(mpirun, signal.SIGUSR1)
    time.sleep(0.5)


def arrange(moment: str, epoch: int) -> None:
    """Put the accident into the program."""
    from hpcsplit.commands import train as command
    from hpcsplit.engine import epochs, persist
    from hpcsplit.files import checkpoints as folder
    from hpcsplit.host import stopping
    from hpcsplit.run import records

    def instead(place: Any, name: str, accident: Callable[..., None], *, after: bool = False) -> None:
        original = getattr(place, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            if not after:
                accident(*args)
            result = original(*args, **kwargs)
            if after:
                accident(*args)
            return result

        setattr(place, name, replaced)

    def in_step(action: Callable[[], None], phase: str = "") -> None:
        def accident(loop: Any, step: int) -> None:
            if (loop.action.epoch, step) == (epoch, 1) and loop.action.phase.startswith(phase):
                action()

        instead(epochs._Loop, "enter", accident, after=True)

    def half_a_file(path: Path, *_: Any) -> None:
        if path.name.startswith("stage") and f"epoch-{epoch + 1:04d}" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            die()

    match moment:
        case "job":
            instead(command, "make_jobs", lambda *_: die())
        case "serial" | "parallel":
            in_step(die, moment)
        case "write":
            instead(persist, "write_tensors", half_a_file, after=True)
        case "finish":
            instead(
                folder, "write_text", lambda path, _: die() if f"{epoch + 1:04d}-" in str(path) else None, after=True
            )
        case "record":
            instead(records.Records, "append", lambda _, r: die() if r.epoch == epoch else None, after=True)
        case "raise":
            in_step(fail)
        case "thread":
            in_step(fail_in_a_thread)
        case "stop" | "sleep":
            in_step(lambda: stall(moment == "stop"))
        case "early":
            instead(stopping.StopRequest, "__init__", lambda *_: ask_mpirun_to_stop(), after=True)
        case "nothing":
            pass
        case "usr1":
            in_step(ask_mpirun_to_stop)
        case _:
            raise ValueError(moment)


def main() -> int:
    rank, moment, *argv = sys.argv[1:]
    if os.environ["PMI_RANK"] == rank:
        name, _, epoch = moment.partition(":")
        if name == "import":
            die()
        arrange(name, int(epoch or 0))
    from hpcsplit.cli import main as command

    return command(argv)


if __name__ == "__main__":
    sys.exit(main())
