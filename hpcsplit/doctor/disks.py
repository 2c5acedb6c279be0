"""Findings about files: the present folder, scratch places with measured speed, HDF5 and its locks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcsplit.doctor.finding import Finding, Status, judged
from hpcsplit.doctor.limits import within
from hpcsplit.files.scratch import Candidate, candidates, look_at

SLOW_DISK = 200e6
"""Bytes/s.  A step reads and writes a row of each sample: with 16 x 32 x 32 float32 (64 KB) 200 MB/s serve 3,000
samples/s one way, what one GPU computes.  A local NVMe disk gives 500 to 3,000 MB/s, a hard disk 100 to 200."""

SMALL_SCRATCH_BYTES = 6_000_000_000
"""Two generations of 60,000 rows of 16 x 28 x 28 float32, the store of a small ResNet on Fashion-MNIST."""

PROBE_BYTES = 64 << 20
_PIECE_BYTES = 4 << 20
_SYNC_EVERY = 4  # pieces
_SHARE_OF_FREE = 8  # at most so much of the free space is written: 1/8
_WRITE_S, _READ_S = 1.5, 1.0
_ALL_S = 5.0  # no further place is measured after so long
_ANSWER_LIMIT_S = 10.0

_HDF5 = """
import json, sys, tempfile
import h5py
facts = {"h5py": h5py.version.version, "hdf5": h5py.version.hdf5_version, "obstacle": ""}
try:
    with tempfile.TemporaryDirectory(dir=sys.argv[1], prefix=".hpcsplit-doctor-") as folder:
        with h5py.File(folder + "/lock.h5", "w") as file:
            file["x"] = 1
except OSError as error:
    facts["obstacle"] = str(error)
print(json.dumps(facts))
"""
"""What any program does that uses h5py and knows nothing of us: it asks for a lock."""


@dataclass(frozen=True)
class Speed:
    """Of writing (until it is on the disk) and of reading back."""

    write_bytes_s: float
    read_bytes_s: float
    measured_bytes: int

    def __str__(self) -> str:
        return f"write {_rate(self.write_bytes_s)}, read {_rate(self.read_bytes_s)}"


def measure(folder: Path, free_bytes: int) -> Speed | None:
    """Write and read a file without a name, at most 64 MB and an eighth of what is free; None when that is too little.

    Raises OSError.
    """
    pieces = min(PROBE_BYTES, free_bytes // _SHARE_OF_FREE) // _PIECE_BYTES
    if not pieces:
        return None
    piece = os.urandom(_PIECE_BYTES)  # no file system can make it smaller
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        handle = file.fileno()

        def write(number: int) -> None:
            os.pwrite(handle, piece, number * _PIECE_BYTES)
            if (number + 1) % _SYNC_EVERY == 0 or number + 1 == pieces:
                os.fsync(handle)

        written, write_s = _timed(write, pieces, _WRITE_S)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)  # read from the disk, where it has a cache of its own
        read, read_s = _timed(lambda number: os.pread(handle, _PIECE_BYTES, number * _PIECE_BYTES), written, _READ_S)
    return Speed(written * _PIECE_BYTES / write_s, read * _PIECE_BYTES / read_s, written * _PIECE_BYTES)


def _timed(work: Callable[[int], object], count: int, limit_s: float) -> tuple[int, float]:
    """How many of `count` pieces were done within the limit, and in how many seconds."""
    start = time.perf_counter()
    for number in range(count):
        work(number)
        if time.perf_counter() - start > limit_s:
            break
    return number + 1, time.perf_counter() - start


class Disks:
    """Measures each file system once, and none after the time for all of them is spent."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str], Speed | None] = {}
        self._end = time.monotonic() + _ALL_S

    def speed(self, place: Candidate) -> Speed | None:
        """The speed there; None when it was not measured.  OSError, TimeoutError."""
        key = (place.mount.point, place.mount.device)
        if key not in self._known:
            if time.monotonic() > self._end:
                return None
            self._known[key] = within(_ANSWER_LIMIT_S, lambda: measure(place.path, place.free_bytes))
        return self._known[key]


def present_folder(disks: Disks) -> Finding:
    """The folder in which `runs/` would be made."""
    advice = "a run makes its folder here; go to another folder, or give --run-dir"
    try:
        place = within(_ANSWER_LIMIT_S, lambda: look_at(Path.cwd(), "present folder"))
    except (OSError, TimeoutError) as error:
        return Finding("folder", f"the present folder: {error}", Status.BROKEN, advice)
    if place.obstacle:
        return Finding("folder", f"{place.path} {place.obstacle}", Status.BROKEN, advice, _data(place))
    return _measured("folder", place, disks, _data(place), [])


def scratch(disks: Disks, first: Path | None, host: str = "") -> list[Finding]:
    """One finding for each place of this node, in the order in which store.path = "scratch" tries them."""
    topic = f"scratch {host}".strip()
    try:
        places = within(_ANSWER_LIMIT_S, lambda: candidates(first))
    except TimeoutError as error:
        return [Finding(topic, str(error), Status.BROKEN, "a scratch folder's file system hangs; tell your site")]
    usable = [place for place in places if not place.obstacle and place.free_bytes >= PROBE_BYTES]
    return [_scratch(topic, place, disks, first, usable) for place in places]


def _scratch(topic: str, place: Candidate, disks: Disks, first: Path | None, usable: list[Candidate]) -> Finding:
    data = {**_data(place), "chosen": usable[:1] == [place]}
    if place in usable:
        problems = []
        if place.free_bytes < SMALL_SCRATCH_BYTES:
            problems.append(
                f"less than {SMALL_SCRATCH_BYTES / 1e9:.0f} GB free, what a small ResNet's store takes: see `plan` "
                "for yours, and ask the batch system for more local disk"
            )
        if place.mount.shared:
            problems.append(f"{place.mount.kind} is shared with other nodes: look for a disk of the node's own")
        return _measured(topic, place, disks, data, problems)
    what = place.obstacle or f"is full ({place.free_bytes / 1e6:.0f} MB free)"
    advice = "" if place.obstacle else "free some, or "
    if place.origin.startswith("$"):
        advice += f"unset {place.origin.removeprefix('$')}, or ask the batch system for the disk that it names"
    else:
        advice += 'give a folder of the node\'s own disk (--scratch, or store.path = "…" for a run)'
    status = Status.BROKEN if place.path == first or not usable else Status.SLOW
    return Finding(topic, f"{_named(place)} {what}", status, advice, data)


def _measured(topic: str, place: Candidate, disks: Disks, data: dict[str, Any], problems: list[str]) -> Finding:
    """The finding for a usable place with its measured speed."""
    found = f"{_named(place)}: {place.mount.kind}, {place.free_bytes / 1e9:.1f} GB free"
    try:
        speed = disks.speed(place)
    except (OSError, TimeoutError) as error:
        advice = f"a file of {PROBE_BYTES >> 20} MB cannot be written ({error}): look at quotas (files and bytes)"
        return Finding(topic, found, Status.BROKEN, advice, data)
    if speed:
        data["speed"] = asdict(speed)
        if min(speed.write_bytes_s, speed.read_bytes_s) < SLOW_DISK:
            better = 'keep the store off it (store.path = "scratch")' if topic == "folder" else "look for a faster disk"
            problems.append(f"slower than {_rate(SLOW_DISK)}: {better}, and see who else uses it")
    return judged(topic, f"{found}, {speed or 'speed not measured'}", problems, data)


def hdf5(folder: Path) -> Finding:
    """The HDF5 library, and whether it can lock files in this folder.  Tried in a process that may crash or hang."""
    command = [sys.executable, "-c", _HDF5, str(folder)]
    try:
        tried = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_ANSWER_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        advice = "a lock or a file hangs: export HDF5_USE_FILE_LOCKING=FALSE and try again, or work in another folder"
        return Finding("HDF5", f"no answer in {_ANSWER_LIMIT_S:g} s in {folder}", Status.BROKEN, advice)
    try:
        facts: dict[str, str] = json.loads(tried.stdout)
    except ValueError:
        why = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        advice = f"h5py does not work beside this Python ({why}): pip install --force-reinstall h5py"
        return Finding("HDF5", "h5py cannot be used", Status.BROKEN, advice)
    return locking(facts, folder)


def locking(facts: dict[str, str], folder: Path) -> Finding:
    """`facts` has the versions `hdf5` and `h5py`, and `obstacle`, why a file cannot be made as usual, or ""."""
    switched_off = os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0")
    found, obstacle = f"HDF5 {facts['hdf5']}, h5py {facts['h5py']}", facts["obstacle"]
    data = {**facts, "locking": not (obstacle or switched_off), "folder": str(folder)}
    if not obstacle:
        how = "is switched off (HDF5_USE_FILE_LOCKING)" if switched_off else "works here"
        return Finding("HDF5", f"{found}, file locking {how}", data=data)
    if "lock" in obstacle:
        advice = (
            "this file system refuses locks. Runs never lock their HDF5 files; for other programs that read them: "
            "export HDF5_USE_FILE_LOCKING=FALSE"
        )
        return Finding("HDF5", f"{found}, file locking is refused in {folder}", Status.SLOW, advice, data)
    advice = f"a file cannot be made in {folder} ({obstacle}): work in a folder that you may write"
    return Finding("HDF5", f"{found}, no file can be made here", Status.BROKEN, advice, data)


def _named(place: Candidate) -> str:
    return str(place.path) if place.origin in (str(place.path), "present folder") else f"{place.path} ({place.origin})"


def _rate(bytes_s: float) -> str:
    return f"{bytes_s / 1e9:.1f} GB/s" if bytes_s >= 1e9 else f"{bytes_s / 1e6:.0f} MB/s"


def _data(place: Candidate) -> dict[str, Any]:
    return {**asdict(place), "path": str(place.path), "mount": {**asdict(place.mount), "point": str(place.mount.point)}}
