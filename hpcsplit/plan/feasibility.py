"""Whether a configuration fits a machine; `plan` and `train` refuse what does not, with the same sentence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from hpcsplit.config.option import cures
from hpcsplit.errors import ConfigError
from hpcsplit.files.atomic import free_bytes
from hpcsplit.files.scratch import held_bytes
from hpcsplit.plan.setting import Setting
from hpcsplit.plan.stages import StagePlan
from hpcsplit.run.folder import RunDir
from hpcsplit.store.generation import no_room

_GB = 1e9


def check_feasible(
    setting: Setting,
    stages: Sequence[StagePlan],
    needs: Sequence[Mapping[str, int]],
    run_dir: RunDir,
    here: int,
    sharing: int = 0,
) -> None:
    """Refuse what has no room in the memory or on the disk of this node, which has the first `here` stages.

    Args:
        needs: the `footprints` of the stages.
        sharing: how many ranks share a GPU; 0: the GPUs that are seen here serve all ranks of the node.

    Raises ConfigError (memory) or StoreError (disk).
    """
    _check_memory(setting, needs[:here], sharing)
    if setting.config.store.kind == "hdf5" and setting.parallel:
        _check_disk(setting, stages[:here], run_dir)


def _check_memory(setting: Setting, needs: Sequence[Mapping[str, int]], sharing: int) -> None:
    device, there, limit = setting.device(), "this node has", memory_limit_bytes()
    needed = sum(need["peak"] for need in needs)
    if device.type == "cuda":  # each rank its own, or some share one
        sharing = sharing or -(-len(needs) // torch.cuda.device_count())
        needed = sharing * max(need["weights"] + need["activations"] + need["images"] for need in needs)
        limit, there = torch.cuda.get_device_properties(device).total_memory, "a GPU here has"
    if needed > limit:
        own = "".join(f" {cure}," for cure in cures(setting.declared.options, "memory"))
        raise ConfigError(
            f"{len(needs)} stage{'s' * (len(needs) > 1)} would need {needed / _GB:.1f} GB of memory at the peak, "
            f"{there} {limit / _GB:.1f} GB; lower data.batch_size, raise schedule.microbatches or set "
            f"schedule.recompute in exact epochs,{own} keep the store on disk "
            '(store.kind = "hdf5"), or use more nodes'
        )


def _check_disk(setting: Setting, stages: Sequence[StagePlan], run_dir: RunDir) -> None:
    needed = 2 * sum(stage.store_bytes for stage in stages)
    rooms = {place: held_bytes(place) + _free_bytes(place) for place in run_dir.store_places(setting.config.store.path)}
    place, room = max(rooms.items(), key=lambda pair: pair[1], default=(run_dir.path, 0))
    if needed > room:
        whose = f"{len(stages)} stage{'s' * (len(stages) > 1)}"
        raise no_room(place, whose, needed, room, setting.store_dtype, cures(setting.declared.options, "disk"))


def _free_bytes(folder: Path) -> int:
    """What can still be written where the folder is, or will be; a place that cannot be asked is left to the store."""
    for place in (folder, *folder.resolve().parents):
        try:
            return free_bytes(place)
        except FileNotFoundError:
            continue
        except OSError:
            break
    return 1 << 62


def memory_limit_bytes() -> int:
    """The memory that the ranks of this node may have together: the machine's, or its control group's share."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _group_files():
        with suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(file.read_text(encoding="ascii")))
    return min(limits)


def _group_files(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Where this process's control groups, and those above them, say how much memory they may have."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        name = "memory.max" if not controllers else "memory.limit_in_bytes"
        if not controllers or "memory" in controllers.split(","):
            top = root / "memory" if controllers else root
            group = top / path.lstrip("/")
            files += [place / name for place in (group, *group.parents) if place.is_relative_to(top)]
    return files
