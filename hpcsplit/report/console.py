"""What rank 0 shows while a run trains: a live row on a terminal, plain lines in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from hpcsplit.errors import UsageError
from hpcsplit.host.printable import printable
from hpcsplit.report.lines import Moment, epoch_line, loss_text, number, position, progress_line
from hpcsplit.report.lines import clock as clock_text
from hpcsplit.report.terminal import terminal_of, terminal_width
from hpcsplit.run.records import EpochRecord

LIVE_REFRESH_S = 0.25
WIDE = 96  # columns from which the live row has room for the accuracy


class Console:
    """Rank 0's voice.  `progress` may be called at every step: it costs one look at the clock when nothing is due.

    `stream` None is the standard output of the moment; while it is `quiet`, nothing is written there.  The live row is
    drawn from inside `progress`, never from a thread of its own, so it takes no core from the training.
    """

    def __init__(
        self,
        total_epochs: int,
        *,
        stream: TextIO | None = None,
        quiet: bool = False,
        interval_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stdout
        self.quiet = quiet
        self._row = _Row(self._stream) if shows_live(self._stream) and not quiet else None
        self._interval_s = LIVE_REFRESH_S if self._row else interval_s
        self._total_epochs = total_epochs
        self._clock = clock
        self._due = clock() + (0.0 if self._row else interval_s)
        self._first: tuple[float, int] | None = None  # when the first epoch of this process began, and which it was
        self._promise: tuple[float, float] | None = None  # the last eta_s and when it was given

    def say(self, text: str) -> None:
        """One text of its own, kept on the screen and in the log."""
        if self.quiet:
            return
        if self._row:
            self._row.console.print(printable(text), soft_wrap=True)
        else:
            print(printable(text), file=self._stream, flush=True)

    def progress(
        self, epoch: int, phase: str, step: int, steps: int, loss: float | None, samples_per_s: float | None
    ) -> None:
        """Say where the run is, if the last time was long enough ago."""
        now = self._clock()
        if self._first is None:
            self._first = (now, epoch)
        if now < self._due:
            return
        self._due = now + self._interval_s
        moment = Moment(epoch, phase, step, steps, loss, samples_per_s, self._eta_s(now, epoch + step / max(1, steps)))
        if self._row:
            self._row.show(moment, self._total_epochs)
        else:
            self.say(progress_line(moment, self._total_epochs))

    def epoch_done(self, record: EpochRecord, eta_s: float | None) -> None:
        """Leave the line of a finished epoch."""
        now = self._clock()
        self._promise = None if eta_s is None else (eta_s, now)
        self._due = max(self._due, now + self._interval_s)
        if self._row:
            self._row.fill(record)
        self.say(epoch_line(record, self._total_epochs, eta_s))

    def close(self) -> None:
        """Take the live row away; what is said later is plain text."""
        if self._row:
            self._row.close()
            self._row = None

    def _eta_s(self, now: float, epochs: float) -> float | None:
        """Seconds to the end: what was promised, or before any promise the pace of this process so far."""
        if self._promise is not None:
            eta_s, given = self._promise
            return max(0.0, eta_s - (now - given))
        if self._first is None or epochs <= self._first[1]:
            return None
        began, first_epoch = self._first
        return (now - began) / (epochs - first_epoch) * (self._total_epochs - epochs)


def shows_live(stream: TextIO) -> bool:
    """Live row or plain lines: HPCSPLIT_PROGRESS decides, else whether a terminal shows the stream.

    A terminal that cannot move its cursor (TERM=dumb) gets plain lines in any case.
    """
    asked = os.environ.get("HPCSPLIT_PROGRESS", "")
    if asked not in ("", "live", "plain"):
        raise UsageError(f"HPCSPLIT_PROGRESS is {asked!r}; it can be live or plain, or unset to choose by the terminal")
    if os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    return asked == "live" or (asked == "" and terminal_of(stream) is not None)


class _Row:
    """The row at the bottom of a terminal that changes; finished lines scroll away above it."""

    def __init__(self, stream: TextIO) -> None:
        width = terminal_width(terminal_of(stream) or "")
        # A pipe to a launcher is no terminal for rich, hence force_terminal and the width; NO_COLOR stays in force.
        verbatim: Any = {"highlight": False, "markup": False, "emoji": False}
        self.console = RichConsole(file=stream, force_terminal=True, width=width, **verbatim)
        texts = ["{task.description}", "{task.completed}/{task.total}", "{task.fields[loss]}"]
        texts += ["{task.fields[accuracy]}"] if width >= WIDE else []
        texts += ["{task.fields[speed]}", "ETA {task.fields[eta]}"]
        columns = [TextColumn(text, markup=False, table_column=Column(no_wrap=True)) for text in texts]
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6))
        self._progress = Progress(
            columns[0],
            bar,
            *columns[1:],
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,  # a traceback must reach the terminal even if this process is killed just after it
        )
        self._accuracy: float | None = None

    def show(self, moment: Moment, total_epochs: int) -> None:
        if not self._progress.tasks:
            self._progress.add_task("", loss="", accuracy="", speed="", eta="")
        speed = moment.samples_per_s
        self._progress.update(
            self._progress.tasks[0].id,
            description=position(moment.epoch, total_epochs, moment.phase),
            completed=moment.step,
            total=moment.steps,
            loss=loss_text(moment.loss),
            accuracy=f"test {number(self._accuracy, '5.2f', 100)} %",
            speed=number(speed, ".0f" if speed is None or speed >= 100 else ".3g") + "/s",
            eta=clock_text(moment.eta_s),
        )
        if self._progress.live.is_started:
            self._progress.refresh()
        else:
            self._progress.start()
            self.console.show_cursor(True)  # a run that MPI aborts could not bring it back

    def fill(self, record: EpochRecord) -> None:
        """The epoch is finished."""
        if record.test_accuracy is not None:
            self._accuracy = record.test_accuracy
        for task in self._progress.tasks:
            self._progress.update(task.id, completed=task.total)

    def close(self) -> None:
        if self._progress.tasks:
            self._progress.stop()
