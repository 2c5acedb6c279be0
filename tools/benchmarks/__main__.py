"""One benchmark: python -m tools.benchmarks NAME [options], with the memory allocator of a run."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from hpcsplit.host.memory import keep_freed_memory
from tools.program import USAGE

EXPERIMENTS = ("accuracy", "plane")  # with the options of tools/reproduce

if __name__ == "__main__":
    name, *words = sys.argv[1:] or [""]
    if name in EXPERIMENTS:
        os.execv(sys.executable, [sys.executable, "-m", "tools.experiments", name, *words])
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    if name not in names:
        known = " ".join((*names, *EXPERIMENTS))
        print(f"usage: tools/bench NAME [options], where NAME is one of: {known}", file=sys.stderr)
        raise SystemExit(USAGE)
    keep_freed_memory()  # before torch
    sys.argv[:] = [f"{name}.py", *words]
    import_module(f"tools.benchmarks.{name}").main()
