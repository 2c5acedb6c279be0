"""Where a node's scratch is looked for, and which place is taken."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcsplit.errors import StoreError
from hpcsplit.files import scratch
from hpcsplit.files.scratch import Mount, candidates, choose, held_bytes, mount_of

MB = 1 << 20


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A folder for each place, with a gigabyte free in each."""
    found = {name: tmp_path / name for name in ("asked", "slurm", "local", "bb/ada", "tmpdir", "tmp")}
    for folder in found.values():
        folder.mkdir(parents=True)
    monkeypatch.setattr(scratch, "BURST_BUFFER", tmp_path / "bb")
    monkeypatch.setattr(scratch, "LAST_RESORT", found["tmp"])
    monkeypatch.setattr(scratch, "free_bytes", lambda path: 1000 * MB)
    for variable, name in (("SLURM_TMPDIR", "slurm"), ("LOCAL_SCRATCH", "local"), ("TMPDIR", "tmpdir")):
        monkeypatch.setenv(variable, str(found[name]))
    monkeypatch.setenv("USER", "ada")
    return found


def free(monkeypatch: pytest.MonkeyPatch, **megabytes: int) -> None:
    monkeypatch.setattr(scratch, "free_bytes", lambda path: megabytes.get(path.name, 0) * MB)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_the_order(places: dict[str, Path]) -> None:
    found = candidates(places["asked"])
    assert [place.path for place in found] == list(places.values())
    assert [place.origin for place in found][:3] == ["asked for", "$SLURM_TMPDIR", "$LOCAL_SCRATCH"]
    assert [place.origin for place in found][4:] == ["$TMPDIR", str(places["tmp"])]
    assert all((place.obstacle, place.free_bytes) == ("", 1000 * MB) for place in found)


def test_what_is_not_set_or_named_twice_is_left_out(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_TMPDIR")
    monkeypatch.setenv("LOCAL_SCRATCH", "")
    monkeypatch.setattr(scratch, "BURST_BUFFER", tmp_path / "nothing")
    (tmp_path / "link").symlink_to(places["tmp"])
    monkeypatch.setenv("TMPDIR", str(tmp_path / "link"))
    assert [(place.path.name, place.origin) for place in candidates()] == [("link", "$TMPDIR")]


def test_the_first_with_room_is_taken(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, slurm=10, local=100, tmpdir=1000)
    assert choose("run-1", 10 * MB) == places["slurm"] / "run-1"
    assert choose("run-2", 11 * MB) == places["local"] / "run-2"
    assert choose("run-3", 101 * MB) == places["tmpdir"] / "run-3"
    assert choose("run-4", 1, places["asked"]) == places["slurm"] / "run-4"
    assert not (places["slurm"] / "run-2").exists()


def test_a_continued_run_finds_its_files_again(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, slurm=10, tmpdir=1000)
    assert choose("run", 20 * MB) == places["tmpdir"] / "run"
    free(monkeypatch, slurm=1000, tmpdir=1000)
    assert choose("run", 20 * MB) == places["tmpdir"] / "run"
    assert choose("other", 20 * MB) == places["slurm"] / "other"


def test_what_the_run_holds_counts_as_room(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = choose("run", 20 * MB)
    (folder / "rows").write_bytes(bytes(15 * MB))
    assert 15 * MB <= held_bytes(folder) < 16 * MB
    free(monkeypatch, slurm=5, local=100)
    assert choose("run", 20 * MB) == folder
    assert choose("run", 30 * MB) == places["local"] / "run"


def test_no_room_lists_every_place(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, slurm=10, local=20)
    places["bb/ada"].rmdir()
    with pytest.raises(StoreError) as error:
        choose("run", 2_000_000_000)
    said = str(error.value)
    assert "no scratch place has room for 2000000000 bytes (2.00 GB)" in said
    assert f"{places['slurm']} ($SLURM_TMPDIR): 0.01 GB free ({10 * MB} bytes)" in said
    assert f"{places['local']} ($LOCAL_SCRATCH): 0.02 GB free" in said
    assert "$USER): does not exist" in said
    assert said.index("slurm") < said.index("local") < said.index("bb") < said.index("tmpdir")
    assert not any((folder / "run").exists() for folder in places.values())


def test_the_folder_is_for_this_user_alone(places: dict[str, Path]) -> None:
    os.umask(os.umask(0))
    (places["slurm"] / "old").mkdir(mode=0o755)
    for name in ("new", "old"):
        assert stat.S_IMODE(choose(name, MB).stat().st_mode) == 0o700


def test_a_planted_link_is_not_followed(places: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (places["slurm"] / "run").symlink_to(tmp_path / "elsewhere")
    assert choose("run", MB) == places["local"] / "run"


def test_the_folder_of_another_user_is_not_taken(places: dict[str, Path]) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder to somebody else")
    (places["slurm"] / "run").mkdir()
    os.chown(places["slurm"] / "run", 12345, 12345)
    assert choose("run", MB) == places["local"] / "run"


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp"])
def test_only_a_name_will_do(name: str) -> None:
    with pytest.raises(AssertionError):
        choose(name, MB)


def test_absent_and_no_folder(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    places["slurm"].rmdir()
    places["local"].rmdir()
    places["local"].write_text("a file")
    by_name = {place.path.name: place.obstacle for place in candidates()}
    assert (by_name["slurm"], by_name["local"]) == ("does not exist", "is no folder")
    assert choose("run", MB).parent == places["bb/ada"]


def test_a_folder_that_cannot_be_written(places: dict[str, Path], tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", tiny_disk], check=True)
    assert candidates(tiny_disk)[0].obstacle == "cannot be written"
    assert choose("run", 1, tiny_disk).parent == places["slurm"]


def test_a_small_disk_in_memory(places: dict[str, Path], tiny_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    place = candidates(tiny_disk)[0]
    assert place.mount == Mount(tiny_disk, "tmpfs", "tmpfs")
    assert place.free_bytes == 4 * MB
    assert choose("run", 4 * MB, tiny_disk) == tiny_disk / "run"
    assert choose("big", 5 * MB, tiny_disk).parent != tiny_disk
    monkeypatch.setattr(scratch, "memory_available_bytes", lambda: MB)
    assert candidates(tiny_disk)[0].free_bytes == MB


def test_ranks_of_a_node_at_the_same_time(places: dict[str, Path]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert {*pool.map(lambda _: choose("run", MB), range(64))} == {places["slurm"] / "run"}


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:30 / /scratch rw shared:7 - lustre 10.0.0.1@o2ib:/work rw,flock
24 23 254:1 / /scratch/my\\040disk rw - xfs /dev/nvme0n1 rw
25 22 0:31 / /covered rw - ext4 /dev/vdb rw
26 25 0:32 / /covered rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "device"),
    [
        ("/etc", "ext4", "/dev/vda"),
        ("/scratch/ada/run", "lustre", "10.0.0.1@o2ib:/work"),
        ("/scratcher", "ext4", "/dev/vda"),
        ("/scratch/my disk/run", "xfs", "/dev/nvme0n1"),
        ("/covered/run", "tmpfs", "tmpfs"),
    ],
)
def test_the_file_system_below_a_path(path: str, kind: str, device: str) -> None:
    mount = mount_of(Path(path), MOUNTS)
    assert (mount.kind, mount.device) == (kind, device)
    assert (mount.in_memory, mount.shared) == (kind == "tmpfs", kind == "lustre")
