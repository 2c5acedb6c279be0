"""Small runs of every method, and what they must come to: `python -m tests.golden.runs` prints it.

The arithmetic is that of x86-64's first vector instructions, so that with one version of torch another processor should
come to the same bits.  After a change that is meant to change them:
`python -m tests.golden.runs > tests/golden/runs.json`, and the reason in the commit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hpcsplit.config.declared import declared_methods
from tests.engine.small import config
from tests.plan.test_planned_bytes import LAYER_CUTS, LAYERS, run
from tests.wire.launch import PYTHONPATH, ROOT

EXPECTED = Path(__file__).with_name("runs.json")
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": PYTHONPATH,
}
ROWS = {"data__limit_train": 56, "data__limit_test": 24, "data__eval_train": 24, "data__batch_size": 16}
ITERATION = LAYERS | {"schedule__ratio": "0:1", "schedule__warmup": 1}
METHODS: dict[str, dict[str, Any]] = {
    "backprop": {"schedule__microbatches": 3},
    "penalty": {"method__downsample": 2},
    "al": {"method__beta": 10.0, "method__eta_kappa": 0.02, "method__eta_kappa_form": "curvature"},  # `earlier` was so
    "al stationary": {},
    "gsadmm": {},
    "gsadmm set": {"method__update": "set"},
    "gsam": {},
    "delayed": {},
    "delayed step": {"method__timetable": "step", "method__microbatches": 2},
    "delayed corrected": {"method__predict": True, "method__spike": True, "method__lr_anneal": 8},
    "auxnet": {"method__aux_warmup": 3, "method__downsample": 2},
    "chunked": {"method__chunk": 2, "method__downsample": 2},
    "chunked multiplier": {"method__chunk": 2, "method__multiplier": True},
    "pdadmm": {},
    "pdadmm int8": {"method__exchange": "int8"},
    "dladmm": {},
}


def configurations() -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(name of the run, stages, changes of the base configuration) of every run."""
    for name, changes in METHODS.items():
        declared = declared_methods()[name.split()[0]]
        for stages in (1, 2, 3):
            if declared.stages in (0, stages):
                layers = ITERATION | {"split__cuts": LAYER_CUTS[stages]} if declared.network == "mlp" else {}
                yield f"{name}, K = {stages}", stages, {"method__name": declared.name} | ROWS | layers | changes


def outcomes() -> dict[str, list[tuple[str, float | None]]]:
    """Of every run and epoch: the hash of the weights, and the loss."""
    torch.set_num_threads(1)
    found = {}
    for name, stages, changes in configurations():
        cfg = config(stages, **changes, store__kind="memory", checkpoint__every_epochs=0)
        with TemporaryDirectory() as place:
            records = run(cfg, stages, Path(place))
        found[name] = [((record.weights_sha256 or "")[:16], record.loss) for record in records]
    return found


def in_portable_arithmetic(*module: object) -> str:
    """What this module, with its arguments, prints in a process of its own."""
    run = [str(word) for word in (sys.executable, "-m", *module)]
    ended = subprocess.run(run, cwd=ROOT, env=os.environ | PORTABLE, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


if __name__ == "__main__":
    if not os.environ.items() >= PORTABLE.items():
        printed = in_portable_arithmetic("tests.golden.runs").strip()
        print(printed.replace('"runs": {', '"runs": {\n ').replace("]], ", "]],\n  "))
    else:
        print(json.dumps({"torch": torch.__version__.partition("+")[0], "runs": outcomes()}))
