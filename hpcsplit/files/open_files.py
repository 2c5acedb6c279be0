"""The limit of open files, which many systems set low for old programs' sake and let every process raise."""

from __future__ import annotations

import errno
import resource

from hpcsplit.errors import LaunchError


def raise_limit() -> int:
    """Raise this process's limit as far as it may go; the limit then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # beyond what the kernel lets any process have
        return soft
    return hard


def too_many(error: BaseException) -> LaunchError | None:
    """What to say when the system refused to open one more, as this error or as the reason for it; else None.

    It is never a fault of the file that was to be opened, so nothing may go on as if that were damaged or absent.
    """
    reason: BaseException | None = error
    seen: set[int] = set()
    while reason is not None and id(reason) not in seen:  # causes and contexts can make a circle
        seen.add(id(reason))
        if isinstance(reason, OSError) and reason.errno == errno.EMFILE:
            return LaunchError(
                f"this process may have only {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files open; raise the "
                "hard limit where it is started (ulimit -Hn, or LimitNOFILE of the batch system), or start fewer "
                "stages in a process"
            )
        if isinstance(reason, OSError) and reason.errno == errno.ENFILE:
            return LaunchError(
                "all processes of this machine together have as many files open as it allows; raise fs.file-max "
                "(sysctl), or start fewer processes on it"
            )
        reason = reason.__cause__ or reason.__context__
    return None
