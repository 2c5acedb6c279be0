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

    exit_code = 70
    agreed = False

    def on_all_ranks(self) -> Self:
        """This error, marked as raised by every rank."""
        self.agreed = True
        return self


class UsageError(HpcsplitError):
    """The command line cannot be understood."""

    exit_code = 64


class ConfigError(HpcsplitError):
    """A configuration that cannot be run."""

    exit_code = 65


class DataError(HpcsplitError):
    """A data set that is absent or not what it should be."""

    exit_code = 65


class CheckpointError(HpcsplitError):
    """A checkpoint that is damaged or belongs to another run."""

    exit_code = 65


class StoreError(HpcsplitError):
    """The store of auxiliary variables has no room or is damaged."""

    exit_code = 73


class LaunchError(HpcsplitError):
    """Started with a number of processes that the configuration does not fit."""

    exit_code = 77


class NumericalError(HpcsplitError):
    """A loss or an auxiliary variable that is no longer a finite number."""

    exit_code = 70
