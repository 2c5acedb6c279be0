"""Large tensors that come and go do not go back to the kernel each time; a user's own settings stay."""

from __future__ import annotations

from typing import Any

import pytest

from hpcsplit.host.proc import peak_resident_bytes
from tests.wire.launch import python

_PROGRAM = """
import resource, sys
from hpcsplit.host.memory import give_back, keep_freed_memory
kept = keep_freed_memory() if "keep" in sys.argv else None
import torch
torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    for _ in range(20):
        torch.ones(4_000_000), torch.ones(12_000_000)
use()
before = faults()
use()
print(kept, faults() - before)
give_back()
"""


def test_freed_memory_is_used_again() -> None:
    kept, faults = python("-c", _PROGRAM, "keep").out.split()
    assert kept == "True"
    _, usual = python("-c", _PROGRAM).out.split()
    assert int(faults) < 1000 < 10_000 < int(usual)  # 20 x 64 MB are 300,000 pages


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_a_users_settings_stay(variable: str) -> None:
    value = "glibc.malloc.trim_threshold=131072" if variable == "GLIBC_TUNABLES" else "131072"
    settings: dict[str, Any] = {variable: value}
    assert python("-c", _PROGRAM, "keep", **settings).out.startswith("False")


def test_the_peak_is_of_this_process_and_does_not_fall() -> None:
    before = peak_resident_bytes()
    assert before is not None
    held = bytearray(before)  # twice as much, all of it zeros that have been written
    held[::4096] = b"x" * len(held[::4096])
    after = peak_resident_bytes()
    assert after is not None
    assert 1.5 * before < after < 3 * before
    del held
    assert peak_resident_bytes() == pytest.approx(after, rel=0.01)  # the kernel counts in batches
