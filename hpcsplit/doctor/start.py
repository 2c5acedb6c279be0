"""Findings about how the ranks were started and where they are: launcher, hosts, cores, devices, packages, Slurm."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from hpcsplit import __version__
from hpcsplit.doctor.finding import Finding, Status, judged
from hpcsplit.doctor.place import Surroundings, older, required
from hpcsplit.errors import LaunchError
from hpcsplit.host.launchers import check_world, claimed_size
from hpcsplit.host.printable import spans

START_SLOW_S = 30.0
"""Python, torch and mpi4py come in 2 to 8 s from a local disk; a shared file system that takes longer delays each start
and each requeue, and gets worse with the number of ranks."""


def launch(size: int, library: str, launcher: str) -> Finding:
    """Whether MPI sees all the processes that the launcher started."""
    claimed, variable = claimed_size()
    data = {"launcher": launcher, "world_size": size, "claimed_size": claimed, "claimed_by": variable}
    try:
        check_world(size, " ".join(library.split()))
    except LaunchError as error:
        return Finding("launch", f"{claimed} processes that do not know of each other", Status.BROKEN, str(error), data)
    ranks = f"{size} rank{'s' * (size > 1)}"
    return Finding(
        "launch", f"{ranks}, started by {launcher}" if launcher else f"{ranks}, without a launcher", data=data
    )


def start_up(seconds: float) -> Finding:
    """How long the slowest rank took to import what a run imports and to start MPI."""
    slow = seconds > START_SLOW_S
    return Finding(
        "start-up",
        f"{seconds:.1f} s until all ranks had imported torch and started MPI",
        Status.SLOW if slow else Status.GOOD,
        f"more than {START_SLOW_S:.0f} s: put the Python environment on a local disk of the nodes (sbcast), or on the "
        "file system that your site recommends for software"
        if slow
        else "",
        {"seconds": round(seconds, 3)},
    )


def ranks(places: Sequence[Surroundings]) -> list[Finding]:
    """One finding for each host."""
    hosts: dict[str, list[Surroundings]] = defaultdict(list)
    for place in places:
        hosts[place.host].append(place)
    return [_host(host, here) for host, here in hosts.items()]


def _host(host: str, here: Sequence[Surroundings]) -> Finding:
    cores = sorted({core for place in here for core in place.cores})
    each = sorted({len(place.cores) for place in here})
    own = sum(len(place.cores) for place in here) == len(cores)
    numbers = [place.rank for place in here]
    per_rank = f", {'-'.join(map(str, each))} each" if own and len(here) > 1 else ", shared" if len(here) > 1 else ""
    names = Counter(place.device.name for place in here if place.device)
    devices = ", ".join(f"{count} x {name}" for name, count in names.items()) or "no GPU"
    found = (
        f"{host}: rank{'s' * (len(here) > 1)} {spans(numbers)}, "
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


def _host_problems(here: Sequence[Surroundings], cores: Sequence[int]) -> list[tuple[Status, str]]:
    problems = []
    if len(cores) < len(here):
        problems.append(
            f"{len(here)} ranks share {len(cores)} core{'s' * (len(cores) > 1)}: start fewer ranks here, or ask for "
            "more cores a rank (sbatch --cpus-per-task, and export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK for srun)"
        )
    used = Counter(place.device.uuid for place in here if place.device)
    shared = {uuid: count for uuid, count in used.items() if count > 1}
    if shared:
        ranks_sharing = sum(shared.values())
        problems.append(
            f"{ranks_sharing} ranks compute on {len(shared)} GPU{'s' * (len(shared) > 1)}: start one rank a GPU "
            "(--ntasks-per-node = --gpus-per-node), and let every rank see all GPUs of its node (--gpu-bind=none)"
        )
    hidden = max(place.hidden_devices for place in here)
    if hidden:
        problems.append(
            f"the host has {hidden} GPU{'s' * (hidden > 1)}, torch sees none: ask for them (--gpus-per-node), look at "
            "CUDA_VISIBLE_DEVICES, and compare the driver (nvidia-smi) with torch.version.cuda"
        )
    return [(Status.SLOW, problem) for problem in problems]


def packages(places: Sequence[Surroundings]) -> Finding:
    """Versions of what a run imports: all there, new enough, and the same for all ranks."""
    mine, problems = places[0].versions, []
    for name, lowest in required().items():
        version = mine.get(name)
        if version == "":
            problems.append((Status.BROKEN, f"{name} is absent: pip install '{name}>={lowest}' beside this Python"))
        elif version and older(version, lowest):
            problems.append((Status.BROKEN, f"{name} {version} is older than {lowest}: pip install -U {name}"))
    for place in places[1:]:
        if different := [name for name in mine if place.versions.get(name) != mine[name]]:
            problems.append(
                (
                    Status.BROKEN,
                    f"rank {place.rank} on {place.host} has another version of {', '.join(different)} than rank 0: "
                    "start all ranks from one environment",
                )
            )
            break
    found = ", ".join(f"{name} {version or 'absent'}" for name, version in mine.items())
    return judged("packages", f"hpcsplit {__version__}, {found}", problems, {"hpcsplit": __version__, **mine})


def slurm(place: Surroundings, environment: dict[str, str] | None = None) -> list[Finding]:
    """The job as Slurm's variables tell it; nothing outside of one."""
    env = dict(os.environ) if environment is None else environment
    if "SLURM_JOB_ID" not in env:
        return []
    facts: dict[str, Any] = {k: v for k, v in sorted(env.items()) if k.startswith("SLURM_")}
    words = [f"job {env['SLURM_JOB_ID']} on {env.get('SLURM_JOB_NODELIST', '?')}"]
    for variable, words_for in (
        ("SLURM_JOB_PARTITION", "partition {}"),
        ("SLURM_NTASKS", "{} tasks"),
        ("SLURM_CPUS_PER_TASK", "{} CPUs a task"),
        ("SLURM_RESTART_COUNT", "restarted {} times"),
    ):
        if env.get(variable):
            words.append(words_for.format(env[variable]))
    if env.get("SLURM_JOB_END_TIME", "").isdigit():
        words.append("ends " + time.strftime("%Y-%m-%d %H:%M", time.localtime(int(env["SLURM_JOB_END_TIME"]))))
    problems = []
    asked = env.get("SLURM_CPUS_PER_TASK", "")
    if asked.isdigit() and len(place.cores) < int(asked):
        problems.append(
            (
                Status.SLOW,
                f"rank 0 may use {len(place.cores)} of the {asked} cores asked for: srun does not inherit "
                "--cpus-per-task, so export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before it",
            )
        )
    return [judged("Slurm", ", ".join(words), problems, facts)]
