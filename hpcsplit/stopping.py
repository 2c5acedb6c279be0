"""The wish to stop: a signal from the batch system, or the run's own time limit."""

from __future__ import annotations

import signal
import time
from typing import Any


class StopRequest:
    """Set by SIGUSR1 or SIGTERM, or by the clock; read between epochs.  Made before anything slow is imported."""

    def __init__(self, time_limit_minutes: float) -> None:
        self.signal: str | None = None
        self.deadline = time.monotonic() + 60 * time_limit_minutes if time_limit_minutes else None
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.signal = signal.Signals(number).name

    def reason(self) -> str | None:
        if self.signal:
            return f"{self.signal} received"
        if self.deadline and time.monotonic() >= self.deadline:
            return "run.time_limit reached"
        return None
