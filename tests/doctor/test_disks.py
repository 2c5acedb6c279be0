from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.doctor import disks
from hpcsplit.doctor.disks import Disks, Speed, hdf5, locking, measure, present_folder, scratch
from hpcsplit.doctor.finding import Status
from hpcsplit.files.scratch import Candidate, Mount

MB = 1 << 20
FACTS = {"hdf5": "2.0.0", "h5py": "3.16.0", "obstacle": ""}


def place(path: Path, origin: str = "$TMPDIR", obstacle: str = "", free: int = 10**11, kind: str = "xfs") -> Candidate:
    return Candidate(path, origin, obstacle, free, Mount(path, kind, "/dev/nvme0n1"))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let these be the candidates, with this speed (MB/s) for writing and reading."""

    def give(*places: Candidate, write: float = 900, read: float = 900) -> None:
        monkeypatch.setattr(disks, "candidates", lambda first: list(places))
        monkeypatch.setattr(disks, "measure", lambda path, free: Speed(write * 1e6, read * 1e6, 64 * MB))

    return give


def test_the_speed_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    speed = measure(tmp_path, 10**12)
    assert speed is not None
    assert 0 < speed.measured_bytes <= disks.PROBE_BYTES
    assert min(speed.write_bytes_s, speed.read_bytes_s) > 1e5
    assert max(speed.write_bytes_s, speed.read_bytes_s) < 1e12
    assert not any(tmp_path.iterdir())


def test_no_disk_is_filled(tmp_path: Path) -> None:
    assert measure(tmp_path, 4 * MB) is None
    speed = measure(tmp_path, 64 * MB)
    assert speed is not None
    assert speed.measured_bytes <= 8 * MB


def test_a_slow_disk_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "_WRITE_S", 0.0)
    speed = measure(tmp_path, 10**12)
    assert speed is not None
    assert speed.measured_bytes == 4 * MB


def test_good_places(tmp_path: Path, given: Any) -> None:
    given(place(tmp_path / "a"), place(tmp_path / "b", "/tmp"))
    first, second = scratch(Disks(), None)
    assert (first.status, first.data["chosen"], second.data["chosen"]) == (Status.GOOD, True, False)
    assert first.found == f"{tmp_path / 'a'} ($TMPDIR): xfs, 100.0 GB free, write 900 MB/s, read 900 MB/s"


@pytest.mark.parametrize(
    ("changes", "speed", "advice"),
    [
        ({"free": 5 * 10**9}, {}, "less than 6 GB free"),
        ({"kind": "lustre"}, {}, "lustre is shared with other nodes"),
        ({}, {"write": 199}, "slower than 200 MB/s"),
        ({}, {"read": 199}, "slower than 200 MB/s"),
    ],
)
def test_slow_places(tmp_path: Path, given: Any, changes: dict[str, Any], speed: dict[str, Any], advice: str) -> None:
    given(place(tmp_path, **changes), **speed)
    [finding] = scratch(Disks(), None)
    assert finding.status == Status.SLOW
    assert advice in finding.advice


def test_a_place_that_cannot_be_used_is_broken_where_it_was_asked_for_or_the_only_one(
    tmp_path: Path, given: Any
) -> None:
    absent, full, good = (
        place(tmp_path / "a", "$LOCAL_SCRATCH", "does not exist"),
        place(tmp_path / "b", "$TMPDIR", free=3 * MB),
        place(tmp_path / "c", "/tmp"),
    )
    given(absent, full, good)
    found = scratch(Disks(), None)
    assert [finding.status for finding in found] == [Status.SLOW, Status.SLOW, Status.GOOD]
    assert "unset LOCAL_SCRATCH" in found[0].advice
    assert "is full (3 MB free)" in found[1].found
    assert [finding.status for finding in scratch(Disks(), tmp_path / "b")][1] == Status.BROKEN
    given(absent, full)
    assert [finding.status for finding in scratch(Disks(), None)] == [Status.BROKEN, Status.BROKEN]


def test_a_full_disk_is_broken_and_stays_as_it_is(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        (tmp_path / "much").write_bytes(bytes(7 * MB))
        finding = scratch(Disks(), tmp_path)[0]
        assert (finding.status, finding.found) == (Status.BROKEN, f"{tmp_path} (asked for) is full (1 MB free)")
        assert [path.name for path in tmp_path.iterdir()] == ["much"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_fails_or_hangs_is_broken(tmp_path: Path, given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given(place(tmp_path))

    def no_quota(*_: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(disks, "measure", no_quota)
    assert "Disk quota exceeded" in scratch(Disks(), None)[0].advice
    monkeypatch.setattr(disks, "measure", lambda *_: __import__("time").sleep(5))
    monkeypatch.setattr(disks, "_ANSWER_LIMIT_S", 0.2)
    [finding] = scratch(Disks(), None)
    assert (finding.status, "no answer in 0.2 s" in finding.advice) == (Status.BROKEN, True)


def test_one_file_system_is_measured_once_and_none_after_the_time(
    tmp_path: Path, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(place(tmp_path), place(tmp_path, "/tmp"))
    calls: list[Path] = []

    def measure(path: Path, free: int) -> Speed:
        calls.append(path)
        return Speed(1e9, 1e9, MB)

    monkeypatch.setattr(disks, "measure", measure)
    scratch(Disks(), None)
    assert len(calls) == 1
    monkeypatch.setattr(disks, "_ALL_S", -1.0)
    assert "not measured" in scratch(Disks(), None)[0].found
    assert len(calls) == 1


def test_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disks, "measure", lambda *_: Speed(1e9, 2e9, MB))
    finding = present_folder(Disks())
    assert finding.status == Status.GOOD
    assert finding.found.startswith(f"{tmp_path}: ")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert present_folder(Disks()).status == Status.BROKEN


def test_hdf5_as_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    finding = hdf5(tmp_path)
    assert finding.status in (Status.GOOD, Status.SLOW)
    assert finding.data["hdf5"][0].isdigit()
    assert not any(tmp_path.iterdir())


def test_hdf5_with_every_lock_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself meets a flock that fails, as on Lustre without the mount option flock."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "refuse.c"
    source.write_text("#include <errno.h>\nint flock(int f, int how) { errno = ENOLCK; return -1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "refuse.so", source], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "refuse.so"))
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    finding = hdf5(tmp_path)
    assert (finding.status, finding.data["locking"]) == (Status.SLOW, False)
    assert "HDF5_USE_FILE_LOCKING=FALSE" in finding.advice
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    finding = hdf5(tmp_path)
    assert (finding.status, finding.data["locking"]) == (Status.GOOD, False)


def test_hdf5_that_hangs_crashes_or_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks, "_HDF5", "import a_module_that_is_absent")
    finding = hdf5(tmp_path)
    assert (finding.status, "No module named" in finding.advice) == (Status.BROKEN, True)
    monkeypatch.setattr(disks, "_HDF5", "import os; os.abort()")
    assert "exit code -6" in hdf5(tmp_path).advice
    monkeypatch.setattr(disks, "_HDF5", "import time; time.sleep(30)")
    monkeypatch.setattr(disks, "_ANSWER_LIMIT_S", 0.5)
    assert "HDF5_USE_FILE_LOCKING" in hdf5(tmp_path).advice


def test_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    assert locking(FACTS, tmp_path).found == "HDF5 2.0.0, h5py 3.16.0, file locking works here"
    refused = locking({**FACTS, "obstacle": "[Errno 37] unable to lock file"}, tmp_path)
    assert (refused.status, refused.data["locking"]) == (Status.SLOW, False)
    assert locking({**FACTS, "obstacle": "[Errno 13] Permission denied"}, tmp_path).status == Status.BROKEN
