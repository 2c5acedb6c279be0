"""Memory that was freed stays with the process, in huge pages: glibc would give every large tensor back at once.

A training step makes and drops the same tensors again and again.  With glibc's defaults each of them is mapped and
cleared anew by the kernel, page by page.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt(3)
_NEVER, _NONE = -1, 0
_USERS_OWN = ("MALLOC_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Set glibc's malloc and torch's allocator so; before torch is imported.  False where the user's environment has
    settings of its own, which are left alone, or where there is no glibc."""
    if any(name.startswith(_USERS_OWN) for name in os.environ):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch: tensors of 2 MB and more ask for huge pages
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_MMAP_MAX, _NONE))


def give_back() -> None:
    """Hand what is free now to the system, once: after the data set has been read."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
