"""How the ranks were started and where they are: what each one says of itself, and the findings about all of them."""

from __future__ import annotations

import os
import platform
import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hpcsplit import __version__
from hpcsplit.doctor.finding import Finding, Status, judged
from hpcsplit.errors import LaunchError
from hpcsplit.host.launchers import check_world, claimed_size
from hpcsplit.host.printable import spans

PACKAGES = ("torch", "torchvision", "numpy", "h5py", "mpi4py", "matplotlib", "rich", "scipy")

START_SLOW_S = 30.0
"""Python, torch and mpi4py come in 2 to 8 s from a local disk; a shared file system that takes longer delays each start
and each requeue, and gets worse with the number of ranks."""

_SLURM = {  # what is said of its variables
    "SLURM_JOB_PARTITION": "partition {}",
    "SLURM_NTASKS": "{} tasks",
    "SLURM_CPUS_PER_TASK": "{} CPUs a task",
    "SLURM_RESTART_COUNT": "restarted {} times",
}


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
    hidden_devices: int  # of the host, as device files say, when torch sees none
    versions: dict[str, str]  # an absent package has ""


def look_around(rank: int, local_rank: int) -> Surroundings:
    """This process's place; imports torch."""
    import torch

    device, hidden = None, 0
    if torch.cuda.is_available():
        place = local_rank % torch.cuda.device_count()
        properties = torch.cuda.get_device_properties(place)
        device = Device(properties.name, str(getattr(properties, "uuid", place)))
    else:
        hidden = sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))
    cores, load = tuple(sorted(os.sched_getaffinity(0))), round(os.getloadavg()[0], 2)
    return Surroundings(rank, local_rank, host_name(), cores, os.cpu_count() or 1, load, device, hidden, versions())


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


def launch(size: int, library: str, launcher: str) -> Finding:
    """Whether MPI sees all the processes that the launcher started."""
    claimed, variable = claimed_size()
    data = {"launcher": launcher, "world_size": size, "claimed_size": claimed, "claimed_by": variable}
    try:
        check_world(size, " ".join(library.split()))
    except LaunchError as error:
        return Finding("launch", f"{claimed} processes that do not know of each other", Status.BROKEN, str(error), data)
    how = f"started by {launcher}" if launcher else "without a launcher"
    return Finding("launch", f"{size} rank{'s' * (size > 1)}, {how}", data=data)


def start_up(seconds: float) -> Finding:
    """How long the slowest rank took to import what a run imports and to start MPI."""
    advice = (
        f"more than {START_SLOW_S:.0f} s: put the Python environment on a local disk of the nodes (sbcast), or on the "
        "file system that your site recommends for software"
    )
    found = f"{seconds:.1f} s until all ranks had imported torch and started MPI"
    return judged("start-up", found, [advice] * (seconds > START_SLOW_S), {"seconds": round(seconds, 3)})


def by_host(places: Sequence[Surroundings]) -> dict[str, list[Surroundings]]:
    """The places of each host."""
    return {host: [p for p in places if p.host == host] for host in dict.fromkeys(p.host for p in places)}


def cores_of(here: Sequence[Surroundings]) -> list[int]:
    """The cores that the ranks of a host may run on, together."""
    return sorted({core for place in here for core in place.cores})


def ranks(places: Sequence[Surroundings]) -> list[Finding]:
    """One finding for each host."""
    return [_host(host, here) for host, here in by_host(places).items()]


def _host(host: str, here: Sequence[Surroundings]) -> Finding:
    cores, each = cores_of(here), sorted({len(place.cores) for place in here})
    own = sum(len(place.cores) for place in here) == len(cores)
    per_rank = f", {'-'.join(map(str, each))} each" if own and len(here) > 1 else ", shared" if len(here) > 1 else ""
    names = Counter(place.device.name for place in here if place.device)
    devices = ", ".join(f"{count} x {name}" for name, count in names.items()) or "no GPU"
    found = (
        f"{host}: rank{'s' * (len(here) > 1)} {spans([place.rank for place in here])}, "
        f"{len(cores)} of {here[0].host_cores} cores ({spans(cores)}){per_rank}, load {here[0].load:.1f}, {devices}"
    )
    data = {
        "host": host,
        "ranks": [
            {"rank": p.rank, "local_rank": p.local_rank, "cores": list(p.cores), "device": p.device and p.device.uuid}
            for p in here
        ],
        "host_cores": here[0].host_cores,
        "load": here[0].load,
    }
    return judged("ranks", found, _host_problems(here, cores), data)


def _host_problems(here: Sequence[Surroundings], cores: Sequence[int]) -> list[str]:
    problems = []
    if len(cores) < len(here):
        problems.append(
            f"{len(here)} ranks share {len(cores)} core{'s' * (len(cores) > 1)}: start fewer ranks here, or ask for "
            "more cores a rank (sbatch --cpus-per-task, and export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK for srun)"
        )
    used = Counter(place.device.uuid for place in here if place.device)
    if shared := [count for count in used.values() if count > 1]:
        problems.append(
            f"{sum(shared)} ranks compute on {len(shared)} GPU{'s' * (len(shared) > 1)}: start one rank a GPU "
            "(--ntasks-per-node = --gpus-per-node), and let every rank see all GPUs of its node (--gpu-bind=none)"
        )
    if hidden := max(place.hidden_devices for place in here):
        problems.append(
            f"the host has {hidden} GPU{'s' * (hidden > 1)}, torch sees none: ask for them (--gpus-per-node), look at "
            "CUDA_VISIBLE_DEVICES, and compare the driver (nvidia-smi) with torch.version.cuda"
        )
    return problems


def packages(places: Sequence[Surroundings]) -> Finding:
    """Versions of what a run imports: all there, new enough, and the same for all ranks."""
    mine, problems = places[0].versions, []
    for name, lowest in required().items():
        version = mine.get(name)
        if version == "":
            problems.append(f"{name} is absent: pip install '{name}>={lowest}' beside this Python")
        elif version and older(version, lowest):
            problems.append(f"{name} {version} is older than {lowest}: pip install -U {name}")
    for place in places:
        if different := [name for name in mine if place.versions.get(name) != mine[name]]:
            problems.append(
                f"rank {place.rank} on {place.host} has another version of {', '.join(different)} than rank 0: "
                "start all ranks from one environment"
            )
            break
    found = ", ".join(f"{name} {version or 'absent'}" for name, version in {"hpcsplit": __version__, **mine}.items())
    return judged("packages", found, problems, {"hpcsplit": __version__, **mine}, Status.BROKEN)


def slurm(place: Surroundings, environment: dict[str, str] | None = None) -> list[Finding]:
    """The job as Slurm's variables tell it; nothing outside of one."""
    env = dict(os.environ) if environment is None else environment
    if "SLURM_JOB_ID" not in env:
        return []
    facts: dict[str, Any] = {k: v for k, v in sorted(env.items()) if k.startswith("SLURM_")}
    words = [f"job {env['SLURM_JOB_ID']} on {env.get('SLURM_JOB_NODELIST', '?')}"]
    words += [said.format(env[variable]) for variable, said in _SLURM.items() if env.get(variable)]
    if env.get("SLURM_JOB_END_TIME", "").isdigit():
        words.append("ends " + time.strftime("%Y-%m-%d %H:%M", time.localtime(int(env["SLURM_JOB_END_TIME"]))))
    asked, problems = env.get("SLURM_CPUS_PER_TASK", ""), []
    if asked.isdigit() and len(place.cores) < int(asked):
        problems.append(
            f"rank 0 may use {len(place.cores)} of the {asked} cores asked for: srun does not inherit "
            "--cpus-per-task, so export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before it"
        )
    return [judged("Slurm", ", ".join(words), problems, facts)]
