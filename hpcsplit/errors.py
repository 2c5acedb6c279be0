"""Failures that a user can act on.  Each says the value, the limit and the next step, and has an exit code."""

from __future__ import annotations

from typing import Self

DONE = 0
REQUEUE = 75  # checkpointed, wants to be started again (EX_TEMPFAIL)
INTERNAL = 70  # a failure that nobody foresaw (EX_SOFTWARE)
INTERRUPTED = 130  # by Ctrl-C, where there is nothing to save (128 + SIGINT)
STALLED = 69  # nothing has moved for run.stall_limit (EX_UNAVAILABLE)


class HpcsplitError(Exception):
    """Anything that ends a run with a sentence instead of a traceback.

    `agreed` says that every rank has raised the same, so that one of them may speak for all.
    """

    exit_code = INTERNAL
    agreed = False

    def __init_subclass__(cls, exit_code: int = INTERNAL) -> None:
        cls.exit_code = exit_code

    def on_all_ranks(self) -> Self:
        """This error, marked as raised by every rank."""
        self.agreed = True
        return self


class UsageError(HpcsplitError, exit_code=64):
    """The command line cannot be understood."""


class ConfigError(HpcsplitError, exit_code=65):
    """A configuration that cannot be run."""


class DataError(HpcsplitError, exit_code=65):
    """A data set that is absent or not what it should be."""


class CheckpointError(HpcsplitError, exit_code=65):
    """A checkpoint that is damaged or belongs to another run."""


class StoreError(HpcsplitError, exit_code=73):
    """The store of auxiliary variables has no room or is damaged."""


class LaunchError(HpcsplitError, exit_code=77):
    """Started with a number of processes that the configuration does not fit."""


class NumericalError(HpcsplitError):
    """A loss or an auxiliary variable that is no longer a finite number."""
