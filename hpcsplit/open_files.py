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


def check_limit(needed: int) -> None:
    """Raise LaunchError where this process may not have so many files open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise LaunchError(
            f"this process may have {limit} files open, and may need {needed}; raise the hard limit (ulimit -Hn, or "
            "LimitNOFILE in the batch system), or start fewer stages in a process"
        )
