"""Who made a run, with what, and where: facts for people who ask later, as plain values."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hpcsplit
from hpcsplit.config import Config
from hpcsplit.errors import StoreError
from hpcsplit.files.atomic import write_in_words
from hpcsplit.files.nofollow import read_text
from hpcsplit.host.printable import spans
from hpcsplit.host.proc import value_in
from hpcsplit.host.process import Process
from hpcsplit.run.trust import user

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "numpy", "h5py", "mpi4py")
_SECRET = re.compile(r"JWT|TOKEN|SECRET|PASS|KEY")  # in the name of a variable: its value is nobody's business
_GIT_S = 10.0  # a checkout on a slow file system


def place(host: str, device: torch.device) -> dict[str, Any]:
    """Where this rank is: host, device, GPU, CPU, cores ("0-3,8") and process."""
    gpu = None
    if device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name} {getattr(properties, 'uuid', '')}".strip()
    return {
        "host": host,
        "device": str(device),
        "gpu": gpu,
        "cpu": processor(),
        "cores": spans(sorted(os.sched_getaffinity(0))),
        "process": vars(Process.this()),
    }


def sharing(places: Sequence[Mapping[str, Any]]) -> int:
    """How many ranks share the busiest GPU, from all ranks' `place`: whatever each of them calls it; 0 without GPUs."""
    return max(Counter((there["host"], there["gpu"]) for there in places if there["gpu"]).values(), default=0)


@cache
def processor() -> str:
    """The name of this machine's CPU."""
    name = value_in("/proc/cpuinfo", "model name")
    return platform.processor() if name is None else name


def facts(config: Config, places: Sequence[Mapping[str, Any]], mpi: str, cuts: Sequence[int]) -> dict[str, Any]:
    """One start of a run on these `place`s of all ranks, with this MPI library, as JSON values."""
    slurm = {k: v for k, v in sorted(os.environ.items()) if k.startswith("SLURM_") and not _SECRET.search(k)}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "user": user(os.geteuid()),
        "umask": value_in("/proc/self/status", "Umask"),  # reading it here does not change it
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "hpcsplit": hpcsplit.__version__,
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "mpi": mpi,
        "ranks": [dict(one) for one in places],
        "cuts": list(cuts),
        "seed": config.run.seed,
        "slurm": slurm,
        "modules": [module for module in os.environ.get("LOADEDMODULES", "").split(":") if module],
        "config": {
            f"{section}.{key}": {"value": value, "origin": config.origins.get(f"{section}.{key}", "default")}
            for section, keys in config.as_dict().items()
            for key, value in keys.items()
        },
    }


def compact(start: Mapping[str, Any], most: int = 32_000) -> str:
    """A start as one line of JSON of at most `most` characters, for an attribute of a file.

    Ranks on one host become one entry, and only keys that are not at their defaults stay; where that is still too long,
    the longest values give way to the name of the file that has them.
    """
    short, ranks = dict(start), defaultdict[str, list[int]](list)
    for rank, one in enumerate(start.get("ranks", ())):
        ranks[f"{one['host']}:{one['device']}"].append(rank)
    short["ranks"] = {where: spans(which) for where, which in ranks.items()}
    short["config"] = {k: v for k, v in start.get("config", {}).items() if v["origin"] != "default"}
    assert most >= 2_000, most
    while len(text := json.dumps(short, separators=(",", ":"))) > most:
        longest = max(short, key=lambda key: len(json.dumps(short[key])))
        short[longest] = "see provenance.json"
    return text


def add(file: Path, start: Mapping[str, Any], continued_from: str | None) -> dict[str, Any]:
    """Add a start, by `facts`, to those in provenance.json, `file`; what was added."""
    before = starts(file)
    ended = before[-1].setdefault("end", "died") if before else None
    added = {**start, "start": len(before) + 1, "before": ended, "continued_from": continued_from}
    _write(file, [*before, added])
    return added


def end(file: Path, how: str) -> None:
    """Add how the newest start of provenance.json has ended: "done", "stopped: SIGUSR1 received" …; rank 0 only."""
    if result := starts(file):
        result[-1] |= {"end": how, "end_time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        try:
            _write(file, result)
        except StoreError as error:  # the run itself has ended well
            logging.getLogger("hpcsplit").warning("%s", error)


def starts(file: Path) -> list[dict[str, Any]]:
    """What the file has, oldest first."""
    try:
        result = json.loads(read_text(file))["starts"]
        json.dumps(result, indent=1)  # what is nested too deep could not be written again
        return [start for start in result if isinstance(start, dict)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        logging.getLogger("hpcsplit").warning("%s is damaged and begun anew", file)
        return []


def newest(file: Path) -> str:
    """The newest start in one line of JSON, for the attributes of a checkpoint; "" before the first."""
    if not (result := starts(file)):
        return ""
    ends = [[start.get("time"), start.get("end")] for start in result[:-1]]
    try:
        return compact(result[-1] | {"earlier": ends[-20:]})
    except (KeyError, TypeError, AttributeError):  # it is somebody else's, and damaged
        return ""


def _write(file: Path, result: Sequence[Mapping[str, Any]]) -> None:
    write_in_words(file, json.dumps({"starts": result}, indent=1) + "\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _git() -> dict[str, Any] | None:
    """Revision of the program, and whether tracked files differ from it; None where it does not run from a checkout."""
    root = Path(hpcsplit.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        revision = _ask_git(root, "rev-parse", "HEAD")
        return {"revision": revision, "dirty": bool(_ask_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError) as error:
        return {"revision": None, "dirty": None, "reason": str(error)}


def _ask_git(root: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_GIT_S, env=quiet, stdin=subprocess.DEVNULL
    )
    return done.stdout.strip()
