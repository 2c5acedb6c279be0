"""A process that has imported what is slow, and forks for each run of pytest: python -m tools.mutation.worker TREE.

It reads one JSON object a line and answers with one: {"record": FILE, "tests": […]} notes who passes where,
{"path": …, "source": …, "tests": […], "limit_s": …, "each_s": …} runs the tests with the file changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import h5py  # noqa: F401
import hypothesis  # noqa: F401
import numpy  # noqa: F401
import pytest
import torch
import torch._dynamo
import torchvision  # noqa: F401

from tools.mutation.passing import Recorder

COMMON = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", "ignore")
MEMORY = 8 << 30  # bytes that a changed program may ask for
NAP_S = 0.02


def main() -> None:
    tree = Path(sys.argv[1])
    os.chdir(tree)
    sys.dont_write_bytecode = True
    sys.path[:] = [
        str(tree),
        *(place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parents[2]),
    ]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tools", "hpcsplit")]:
        del sys.modules[name]  # those of the copy count from now on
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _recorded(tree, asked) if "record" in asked else _tried(tree, asked)
        print(json.dumps(answer), file=answers, flush=True)


def _recorded(tree: Path, asked: dict[str, Any]) -> dict[str, Any]:
    def run() -> int:
        recorder = Recorder(tree)
        code = pytest.main([*COMMON, "--timeout=0", *asked["tests"]], plugins=[recorder])
        tests = {
            test: {"seconds": recorder.seconds[test], "lines": sorted(lines)} for test, lines in recorder.of.items()
        }
        Path(asked["record"]).write_text(json.dumps(tests), encoding="utf-8")
        return int(code)

    code, said, _ = _forked(tree, run, 3600.0)
    return {"code": code, "said": said[-2000:]}


def _tried(tree: Path, asked: dict[str, Any]) -> dict[str, Any]:
    path = tree / asked["path"]
    good = path.read_bytes()
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
    path.write_text(asked["source"], encoding="utf-8")
    try:
        words = [*COMMON, f"--timeout={asked['each_s']:.0f}", *asked["tests"]]
        code, said, seconds = _forked(tree, lambda: int(pytest.main(words)), asked["limit_s"])
    finally:
        path.write_bytes(good)
    noticed = [line.split(" - ")[0] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    late = code is None or "Timeout (>" in said or "Failed: Timeout" in said
    return {"code": code, "late": late, "by": noticed[:1], "seconds": round(seconds, 1)}


def _forked(tree: Path, run: Any, limit_s: float) -> tuple[int | None, str, float]:
    """The exit code (None: it took too long) and the output of what a child does."""
    began, said = time.monotonic(), tree.parent / f"said-{os.getpid()}"
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setsid()
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for fd in (1, 2):
                os.dup2(out, fd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            code = run()
            sys.stdout.flush()
        finally:
            os._exit(code)
    status = None
    while time.monotonic() - began < limit_s:
        ended, found = os.waitpid(child, os.WNOHANG)
        if ended:
            status = found
            break
        time.sleep(NAP_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    text = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
    return (None if status is None else os.waitstatus_to_exitcode(status)), text, time.monotonic() - began


if __name__ == "__main__":
    main()
