"""Time limits that hold even where Python cannot act: inside MPI, a driver or a file system that does not answer."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import NoReturn, TypeVar

T = TypeVar("T")


def within(limit_s: float, work: Callable[[], T]) -> T:
    """The result of `work`, or its exception; TimeoutError when it takes longer (it is then left to itself)."""
    future = Future[T]()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if not future.done():
        raise TimeoutError(f"no answer in {limit_s:g} s")
    return future.result()


class Guard:
    """A child process that ends this one when a part takes longer than announced.

        with Guard("rank 0 on n1") as guard:
            guard.expect("start of MPI", 60)
            ...

    It says on the standard error which part that was.  A launcher of MPI then ends the other ranks.  Start it before
    MPI and before any thread.
    """

    def __init__(self, who: str) -> None:
        self.who = who

    def __enter__(self) -> Guard:
        sys.stdout.flush()
        sys.stderr.flush()
        heard, self._said = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._said)
            _watch(heard, self.who)
        os.close(heard)
        return self

    def expect(self, part: str, limit_s: float) -> None:
        """The part that begins now, instead of the one before, and how long it may take (s)."""
        with suppress(BrokenPipeError):
            os.write(self._said, f"{limit_s} {part}\n".encode())

    def __exit__(self, *_: object) -> None:
        os.close(self._said)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _watch(heard: int, who: str) -> NoReturn:
    """Wait for the next announcement as long as the last one allows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    watched, part, limit_s = os.getppid(), "", None
    while select.select([heard], [], [], limit_s)[0]:
        said = os.read(heard, 4096).decode()
        if not said:
            os._exit(0)
        limit, part = said.splitlines()[-1].split(" ", 1)
        limit_s = float(limit)
    text = f"hpcsplit: {who}: {part} has not ended within {limit_s:g} s; this is broken, the doctor stops here\n"
    with suppress(OSError):  # nobody reads it any more
        os.write(2, text.encode())
    os.kill(watched, signal.SIGKILL)
    os._exit(0)
