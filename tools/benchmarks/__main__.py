"""One benchmark: python -m tools.benchmarks NAME [options], with the memory allocator of a run."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from hpcsplit.host.memory import keep_freed_memory
from tools.program import USAGE

if __name__ == "__main__":
    keep_freed_memory()  # before torch
    name, *sys.argv[1:] = sys.argv[1:] or [""]
    if name not in (names := sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))):
        print(f"usage: tools/bench NAME [options], where NAME is one of: {' '.join(names)} ", file=sys.stderr)
        raise SystemExit(USAGE)
    sys.argv[0] = f"{name}.py"
    sys.exit(import_module(f"tools.benchmarks.{name}").main())
