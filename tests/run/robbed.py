"""`hpcsplit` whose lock is taken after an epoch: python -m tests.run.robbed train CONFIG … --run-dir DIR."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from hpcsplit.cli import main
from hpcsplit.run import lock
from tests.run.owners import ELSEWHERE, QUICK, left_behind


def rob(run: Path) -> None:
    while not (run / "records.jsonl").exists():
        time.sleep(0.01)
    left_behind(run / "lock", ELSEWHERE)


if __name__ == "__main__":
    lock.Pace = lambda: QUICK  # type: ignore[assignment, misc]
    threading.Thread(target=rob, args=(Path(sys.argv[-1]),), daemon=True).start()
    sys.exit(main(sys.argv[1:]))
