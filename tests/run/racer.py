"""A script: python -m tests.run.racer FOLDER NAME RIVAL ROUNDS

It tries for FOLDER/0/lock, FOLDER/1/lock … at the same time as RIVAL, and prints "won" or "lost" for each; a winner
holds the lock until its rival has tried.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

from hpcsplit.errors import LaunchError
from hpcsplit.run.lock import RunLock
from tests.run.owners import QUICK

PACE = dataclasses.replace(QUICK, patience=0.05)


def meet(folder: Path, name: str, rival: str, where: str) -> None:
    (folder / f"{name}-{where}").touch()
    while not (folder / f"{rival}-{where}").exists():
        time.sleep(0)


def main(folder: Path, name: str, rival: str, rounds: int) -> None:
    for nth in range(rounds):
        place = folder / str(nth)
        meet(place, name, rival, "start")
        try:
            lock = RunLock.acquire(place / "lock", PACE)
        except LaunchError:
            lock = None
        meet(place, name, rival, "end")
        if lock:
            lock.release()
        print("won" if lock else "lost", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
