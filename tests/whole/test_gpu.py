"""Two ranks on one GPU compute what they compute on the CPU, up to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.small import records, write_toml
from tests.wire.launch import needs_mpi, python

pytestmark = [
    needs_mpi,
    pytest.mark.mpi,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("method", ["penalty", "al", "gsadmm", "backprop"])
def test_same_losses_as_on_the_cpu(tmp_path: Path, method: str) -> None:
    config = write_toml(tmp_path / "gpu.toml", 2, method__name=method)
    found = {}
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        words = ("-m", "hpcsplit", "train", config, "--run-dir", folder, "--run.device", device)
        ended = python(*words, ranks=2, limit_s=300)
        assert ended.code == 0, ended.err
        found[device] = [record["loss"] for record in records(folder)]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=0.05)
