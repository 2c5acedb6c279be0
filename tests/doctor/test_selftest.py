"""The test of device memory runs in two processes of its own, and whatever happens to them is survived."""

from __future__ import annotations

import sys

import pytest
import torch

from hpcsplit.doctor import messages
from hpcsplit.doctor.finding import Status
from hpcsplit.doctor.selftest import PASSED, device_memory_obstacle, swap
from hpcsplit.doctor.start import Device, Surroundings
from hpcsplit.wire import lockstep
from hpcsplit.wire.mpi import Library
from tests.wire.launch import needs_mpi

pytestmark = [needs_mpi, pytest.mark.mpi]

AWARE = Library("MPICH Version: 5.0", "5.0", True, ("mpi", "system", "cuda"))
PLACE = Surroundings(0, 0, "n1", (0, 1), 2, 0.0, Device("H100", "GPU-1"), 0, {})


def test_two_processes_swap_tensors() -> None:
    assert device_memory_obstacle("cpu", limit_s=120) == ""


def test_a_swap_compares_what_has_arrived() -> None:
    here = torch.device("cpu")
    assert lockstep.run([swap(rank, here, 5) for rank in (0, 1)]) == [True, True]
    first = swap(0, here, 5)
    next(first), next(first)
    with pytest.raises(StopIteration) as end:
        first.send(torch.full((5,), 5.0))  # what it has sent itself
    assert end.value.value is False


@pytest.mark.parametrize(
    ("code", "obstacle"),
    [
        ("import ctypes; ctypes.string_at(0)", "crashed (segmentation fault)"),
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("import time; time.sleep(60)", "has not ended within 3 s"),
        (f"print('{PASSED}') if __import__('os').environ['PMI_RANK'] == '0' else None", "brought wrong numbers"),
    ],
)
def test_what_goes_wrong_there_is_a_sentence_here(code: str, obstacle: str) -> None:
    assert device_memory_obstacle("cpu", (sys.executable, "-c", code), 3 if "sleep" in code else 60) == obstacle


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert device_memory_obstacle("cuda", limit_s=120).startswith("ended with exit code")


@pytest.mark.parametrize("obstacle", ["", "crashed (segmentation fault)"])
def test_the_finding(obstacle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "device_memory_obstacle", lambda _: obstacle)
    finding = messages.device_memory(AWARE, PLACE)
    assert finding.found.startswith("staged through host memory")
    assert finding.data["device_memory"] is (obstacle == "")
    assert finding.status == (Status.SLOW if obstacle else Status.GOOD)
    assert obstacle in finding.advice


def test_an_mpi_that_claims_nothing_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPICH_GPU_SUPPORT_ENABLED", raising=False)
    monkeypatch.setattr(messages, "device_memory_obstacle", lambda _: pytest.fail("tried"))
    plain = Library("MPICH", "5.0", True, ("mpi", "system"))
    assert (
        messages.device_memory(plain, PLACE).found == "staged through host memory; memory that MPI knows: mpi, system"
    )
    assert messages.device_memory(AWARE, Surroundings(0, 0, "n1", (0,), 1, 0.0, None, 0, {})).status == Status.GOOD
