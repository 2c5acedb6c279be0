"""What one process knows about itself: host, cores, devices, versions, and who started it."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "h5py", "mpi4py", "matplotlib", "rich", "scipy")


@dataclass(frozen=True)
class Device:
    """A GPU that this rank would compute on."""

    name: str
    uuid: str


@dataclass(frozen=True)
class Surroundings:
    """One rank's surroundings."""

    rank: int
    local_rank: int
    host: str
    cores: tuple[int, ...]  # the ones this process may run on
    host_cores: int
    load: float  # of the host, mean of the last minute: processes that run or want to
    device: Device | None
    devices: int  # visible to this process
    hidden_devices: int  # of the host, as device files say, when torch sees none
    versions: dict[str, str]  # an absent package has ""


def look_around(rank: int, local_rank: int) -> Surroundings:
    """This process's place; imports torch."""
    devices, device = _devices(local_rank)
    return Surroundings(
        rank,
        local_rank,
        host_name(),
        tuple(sorted(os.sched_getaffinity(0))),
        os.cpu_count() or 1,
        round(os.getloadavg()[0], 2),
        device,
        devices,
        0 if devices else _device_files(),
        versions(),
    )


def host_name() -> str:
    """The name of this node, as the batch system calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def versions() -> dict[str, str]:
    """The version of each package that a run imports; "" for an absent one."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def required() -> dict[str, str]:
    """The lowest version of each package that this one asks for, as its installed metadata says."""
    try:
        needs = metadata.requires("hpcsplit") or []
    except metadata.PackageNotFoundError:
        return {}
    pairs = [re.match(r"([\w-]+)>=([\d.]+)", need) for need in needs if "extra ==" not in need]
    return {pair[1]: pair[2] for pair in pairs if pair}


def older(version: str, lowest: str) -> bool:
    """Whether a version such as 2.15.0+cu132 comes before another."""

    def numbers(text: str) -> list[int]:
        return [int(number) for number in [*re.findall(r"\d+", text.partition("+")[0]), 0, 0][:3]]

    return numbers(version) < numbers(lowest)


def _devices(local_rank: int) -> tuple[int, Device | None]:
    import torch

    if not torch.cuda.is_available():
        return 0, None
    count = torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(local_rank % count)
    return count, Device(properties.name, str(getattr(properties, "uuid", local_rank % count)))


def _device_files() -> int:
    assert sys.platform == "linux"
    return len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
