"""The limit of open files, which many systems set low for old programs' sake and let every process raise."""

from __future__ import annotations

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


def too_many() -> LaunchError:
    """What to say when the system refuses to open one more."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return LaunchError(
        f"this process may have only {limit} files open; raise the hard limit where it is started (ulimit -Hn, or "
        "LimitNOFILE of the batch system), or start fewer stages in a process"
    )
