"""A script: python -m tests.run.holder LOCK owns the lock until its standard input ends."""

from __future__ import annotations

import sys
from pathlib import Path

from hpcsplit.run.lock import RunLock

if __name__ == "__main__":
    lock = RunLock.acquire(Path(sys.argv[1]))
    print("mine", flush=True)
    sys.stdin.read()
    lock.release()
