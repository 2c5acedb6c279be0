"""Compiled blocks compute what the others do, and are called by the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch

from hpcsplit.engine.forward import refresh
from hpcsplit.schedule.actions import Refresh, Train
from hpcsplit.wire import lockstep
from tests.engine.conftest import Make
from tests.engine.small import one_epoch


@pytest.mark.parametrize("method", ["penalty", "gsadmm"])
def test_compiled_training_is_the_same_up_to_rounding(make: Make, method: str) -> None:
    calls = []
    torch_compile = torch.compile

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:  # with a compiler that every machine has
        calls.append(forward)
        return torch_compile(forward, backend="aot_eager")

    ended = {}
    for compiled in (False, True):
        with patch("torch.compile", counted):
            jobs = make(2, place=f"compile-{compiled}", method__name=method, run__torch_compile=compiled)
        lockstep.run([one_epoch(job, Train(0, "serial", 0)) for job in jobs])
        lockstep.run([refresh(job, Refresh(1), None) for job in jobs])
        lockstep.run([one_epoch(job, Train(1, "parallel", 0)) for job in jobs])
        ended[compiled] = {name: value for job in jobs for name, value in job.stage.state().items()}
    assert sum(isinstance(getattr(call, "__self__", None), torch.nn.Module) for call in calls) == 6
    assert ended[False].keys() == ended[True].keys()
    for name, value in ended[False].items():
        torch.testing.assert_close(ended[True][name], value, rtol=1e-3, atol=1e-5)
