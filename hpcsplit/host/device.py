"""Between the host and the device a stage computes on, without making either wait for the other."""

from __future__ import annotations

import os

import numpy as np
import torch

from hpcsplit.host.proc import peak_resident_bytes


class Copy:
    """A copy to the host that has ended; torch.cuda.Event is one that may not have."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


def copy_under_way(device: torch.device) -> Copy | torch.cuda.Event:
    """The end of all that the current stream of `device` has been given."""
    if device.type != "cuda":
        return Copy()
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def upload(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """The values of the host on `device`; what that has been given before them goes on meanwhile."""
    here = torch.as_tensor(values)
    return (here.pin_memory() if device.type == "cuda" else here).to(device, non_blocking=True)


def download(values: torch.Tensor) -> tuple[torch.Tensor, Copy | torch.cuda.Event]:
    """The values on the host, to be read when what comes with them has ended; those of the host are there at once."""
    if values.device.type == "cpu":
        return values.detach(), Copy()
    here = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
    here.copy_(values.detach(), non_blocking=True)
    return here, copy_under_way(values.device)


def use(device: torch.device, *, deterministic: bool = False) -> torch.device:
    """Make it the one that CUDA takes where none is named; with `deterministic`, equal starts give equal bits.

    An operator that has no such form then raises RuntimeError, which names it.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
            torch.use_deterministic_algorithms(True)
    return device


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had so far: of a GPU there, else of the host."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes() or 0


def wait_for(device: torch.device) -> None:
    """Until it has done what it has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
