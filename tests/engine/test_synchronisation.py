"""In the steady state of an epoch nothing waits for the device: a step reads no value from it.

The "meta" device stands in for a GPU: reading a value of one of its tensors is what would wait.  With CUDA's own eyes
(`set_sync_debug_mode`) the same is seen on a GPU, copies from pageable memory included.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpcsplit.assemble import make_job
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.prepare import prepare
from hpcsplit.rundir import RunDir
from hpcsplit.schedule.actions import Phase, Refresh, Train
from hpcsplit.wire import lockstep
from tests.engine.small import config, one_epoch

WAYS: dict[str, tuple[Phase, str, dict[str, Any]]] = {
    "exact": ("serial", "backprop", {}),
    "exact in micro-batches": ("serial", "backprop", {"schedule__microbatches": 4}),
    "penalty": ("parallel", "penalty", {}),
    "al": ("parallel", "al", {}),
    "gsadmm": ("parallel", "gsadmm", {}),
    "delayed": ("parallel", "delayed", {}),
    "delayed in micro-batches": ("parallel", "delayed", {"method__microbatches": 2}),
}


NO_AUTOCAST = patch("hpcsplit.split.stage.torch.autocast", lambda *args, **options: nullcontext())  # meta knows none


class Waits(TorchDispatchMode):
    """Where a value of the meta device is read, by line of the program; it is then taken for one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name()
        source = args[1] if name == "aten::copy_" else args[0] if args else None
        far = isinstance(source, torch.Tensor) and source.is_meta
        if far and name == "aten::_local_scalar_dense":
            self._note()
            return 1.0 if source.is_floating_point() else 1
        if far and name == "aten::copy_" and not args[0].is_meta:
            if not kwargs.get("non_blocking", len(args) > 2 and args[2]):
                self._note()
            return args[0].fill_(1)
        if far and name == "aten::_to_copy" and str(kwargs.get("device", "meta")) == "cpu":
            self._note()
            return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if name.startswith("aten::_fused_sgd_"):
            return None
        return func(*args, **kwargs)

    def _note(self) -> None:
        lines = [f for f in traceback.extract_stack() if "/hpcsplit/" in f.filename and "/tests/" not in f.filename]
        self.seen[f"{Path(lines[-1].filename).name}:{lines[-1].lineno}"] += 1


@pytest.mark.parametrize("way", WAYS)
def test_a_step_reads_nothing_from_its_device(tmp_path: Path, way: str) -> None:
    with patch("torch.optim.sgd._device_dtype_check_for_fused"), NO_AUTOCAST, Waits() as waits:
        jobs = jobs_on(torch.device("meta"), tmp_path, way)
        epoch(jobs, WAYS[way][0])
        waits.seen.clear()
        epoch(jobs, WAYS[way][0], number=1)
    assert not waits.seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("way", WAYS)
def test_nothing_in_an_epoch_waits_for_the_gpu(tmp_path: Path, way: str) -> None:
    jobs = jobs_on(torch.device("cuda", 0), tmp_path, way)
    epoch(jobs, WAYS[way][0])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            epoch(jobs, WAYS[way][0], number=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    where = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in seen if "synchroniz" in str(w.message))
    assert not where


def jobs_on(device: torch.device, folder: Path, way: str) -> list[Job]:
    """Two stages of a small ResNet, after the forward pass that its variables begin with."""
    phase, method, changes = WAYS[way]
    cfg = config(
        2,
        model__name="resnet8",
        split__cuts=[2],
        method__name=method,
        data__augment=True,
        data__limit_train=64,
        data__batch_size=8,
        store__kind="memory",
        **changes,
    )
    run_dir = RunDir(folder / "run")
    prepared = prepare(cfg, run_dir, 2, torch.device("cpu"))
    jobs = [make_job(cfg, prepared, run_dir, k, 2, device) for k in range(2)]
    if phase == "parallel" and jobs[0].has_variables:
        lockstep.run([refresh(job, Refresh(0)) for job in jobs])
    return jobs


def epoch(jobs: list[Job], phase: Phase, number: int = 0) -> None:
    lockstep.run([one_epoch(job, Train(number, phase, number, goes_on=True)) for job in jobs])
