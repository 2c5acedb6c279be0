"""The wish to stop: a signal from the batch system, the run's own time limit, or the end of the Slurm job."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, NoReturn

from hpcsplit.errors import REQUEUE

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AGAIN_S = 1.0  # Ctrl-C sooner than this after the first is the same one, passed on by the launcher as well
_ANSWER_S = 60  # how long squeue may take
START_S = 5.0  # from a signal to the first step; a start that takes longer may hang, and has nothing to lose
_LOOK_S = 0.25


class StopRequest:
    """Set by SIGUSR1, SIGTERM, SIGINT (Ctrl-C) or SIGHUP (the terminal is gone), or by the clock; read at every step.
    Made before anything slow is imported.

    From the first signal on, and once Python ends, they are ignored: without its handler the process would end by the
    second one, or by the TERM that srun sends when another rank has left a moment earlier, and lose its exit code.
    A second Ctrl-C alone ends the process at once.  A SIGHUP that is ignored, as under nohup, stays so.
    `stop_before_minutes` is the margin before the end of the Slurm job, 0 ignores that end.  `$SLURM_JOB_END_TIME`
    tells it, or else squeue, asked once in a thread of its own and only where `ask` is true: one rank suffices.

    Attributes:
        end: ends this process with exit code REQUEUE, called from a thread; what it takes along is up to others.
    """

    def __init__(self, time_limit_minutes: float, stop_before_minutes: float = 0.0, *, ask: bool = True) -> None:
        self.signal: str | None = None
        self.end: Callable[[], Any] = lambda: os._exit(REQUEUE)
        self._starting = False
        self.deadlines: list[tuple[float, str]] = []  # monotonic seconds, and what to say then
        if time_limit_minutes:
            self.deadlines.append((time.monotonic() + 60 * time_limit_minutes, "run.time_limit reached"))
        if threading.current_thread() is threading.main_thread():  # another one cannot
            for number in _SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self._note)
            atexit.register(_ignore_signals)
        if stop_before_minutes and (job := _slurm_job()):
            told = os.environ.get("SLURM_JOB_END_TIME", "")
            if told.isdigit():
                self._stop_before(int(told), stop_before_minutes)
            elif ask:
                threading.Thread(target=self._ask, args=(job, stop_before_minutes), daemon=True).start()

    def reason(self) -> str | None:
        """Why to stop now, or None; takes less than a microsecond."""
        if self.signal:
            return f"{self.signal} received"
        for deadline, sentence in self.deadlines:
            if time.monotonic() >= deadline:
                return sentence
        return None

    def guard_start(self) -> None:
        """From now on a signal ends the program within START_S, whatever it waits for, unless it has `started`.

        SIGUSR1 comes long before the end of a job, so that one waits for the first step in any case.
        """
        self._starting = True
        threading.Thread(target=self._watch_start, name="start", daemon=True).start()

    def started(self) -> None:
        """From now on somebody asks for the `reason` at every step."""
        self._starting = False

    def _watch_start(self) -> None:
        noted: float | None = None
        while self._starting:
            time.sleep(_LOOK_S)
            if self.signal and self.signal != "SIGUSR1":
                noted = noted or time.monotonic()
                if self._starting and time.monotonic() - noted > START_S:
                    sentence = f"{self.signal} received before the first step; start the same command again"
                    with suppress(OSError):  # nobody reads it any more
                        os.write(2, f"hpcsplit: {sentence} (exit {REQUEUE})\n".encode())
                    self.end()
                    return

    @contextmanager
    def in_library(self) -> Iterator[None]:
        """While the block runs, SIGTERM and Ctrl-C end the process at once: no Python runs in it that could note them,
        and nothing of a run has been touched yet."""
        ends = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, signal.SIG_DFL) for number in ends}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.signal, self._noted = signal.Signals(number).name, time.monotonic()
        _ignore_signals()
        signal.signal(signal.SIGINT, self._insist)

    def _insist(self, number: int, frame: Any) -> None:
        if time.monotonic() - self._noted > _AGAIN_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _ask(self, job: str, margin_minutes: float) -> None:
        """Learn from squeue when the job ends; no squeue, no end or no answer leaves the request as it is."""
        command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]
        environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
        try:
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_ANSWER_S)
            end = datetime.fromisoformat(answer.stdout.strip())
        except (OSError, ValueError, subprocess.SubprocessError):
            return
        self._stop_before(end.timestamp(), margin_minutes)

    def _stop_before(self, end: float, margin_minutes: float) -> None:
        """Set the deadline for a job that ends at `end`, in seconds since 1970; an end that is past says nothing."""
        left, margin = end - time.time(), 60 * margin_minutes
        if left <= 0:
            return
        clock = datetime.fromtimestamp(end).strftime("%H:%M:%S")
        sentence = f"the Slurm job ends at {clock}, run.stop_before = {margin_minutes:g} min"
        if left <= margin:
            margin = left / 10
            sentence += f", more than the {left:.0f} s that it had left; so {margin:.0f} s before its end"
        self.deadlines.append((time.monotonic() + left - margin, sentence))


@contextmanager
def during(time_limit_minutes: float, stop_before_minutes: float) -> Iterator[StopRequest]:
    """A request for the time of the block, of a process that goes on: every signal has its handler again then.  Ctrl-C
    keeps its own, KeyboardInterrupt."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _SIGNALS} if here else {}
    try:
        request = StopRequest(time_limit_minutes, stop_before_minutes)
        if here:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if here:
            atexit.unregister(_ignore_signals)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _slurm_job() -> str:
    """What squeue and scontrol call this job; empty outside of Slurm.  $SLURM_JOB_ID of an array may mean all of it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def leave(code: int) -> NoReturn:
    """End this process, whatever its other threads do."""
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
