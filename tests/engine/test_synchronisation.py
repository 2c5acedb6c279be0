"""In the steady state of an epoch nothing waits for the device: a step reads no value from it.

The "meta" device stands in for a GPU: reading a value of one of its tensors is what would wait.  With CUDA's own eyes
(`set_sync_debug_mode`) the same is seen on a GPU, copies from pageable memory included.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcsplit.assemble import make_jobs
from hpcsplit.engine.forward import refresh
from hpcsplit.engine.job import Job
from hpcsplit.plan.prepare import prepare
from hpcsplit.plan.setting import Setting
from hpcsplit.run.folder import RunDir
from hpcsplit.schedule.actions import Phase, Refresh, Train
from hpcsplit.wire import lockstep
from tests.engine.far import NO_AUTOCAST, NO_CHECK, Waits
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


@pytest.mark.parametrize("way", WAYS)
def test_a_step_reads_nothing_from_its_device(tmp_path: Path, way: str) -> None:
    with NO_CHECK, NO_AUTOCAST, Waits() as waits:
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
    prepared = prepare(Setting(cfg), run_dir, 2, torch.device("cpu"))
    jobs = make_jobs(Setting(cfg), prepared, run_dir, range(2), device)
    if phase == "parallel" and jobs[0].has_variables:
        lockstep.run([refresh(job, Refresh(0)) for job in jobs])
    return jobs


def epoch(jobs: list[Job], phase: Phase, number: int = 0) -> None:
    lockstep.run([one_epoch(job, Train(number, phase, number, goes_on=True)) for job in jobs])
