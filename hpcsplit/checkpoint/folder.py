"""The folders of checkpoints: checkpoints/epoch-0007-step-000000/{stage-000.h5, …, manifest.h5, SHA256SUMS}.

SHA256SUMS is written last, in a folder that still ends in .tmp; the rename makes it count.  No file is opened by the
HDF5 library before its checksum has been compared.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpcsplit.errors import CheckpointError
from hpcsplit.files.atomic import fsync_dir, replace_symlink, sha256_file, write_text

MANIFEST = "manifest.h5"
SUMS = "SHA256SUMS"
_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{6})")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def stage_file(stage: int) -> str:
    return f"stage-{stage:03d}.h5"


def folder_name(epoch: int, step: int = 0) -> str:
    """The name of the checkpoint after `epoch` finished epochs and `step` steps of the next one."""
    return f"epoch-{epoch:04d}-step-{step:06d}"


def complete(checkpoints: Path) -> list[Path]:
    """The complete checkpoints, newest first."""
    if not checkpoints.is_dir():
        return []
    found = [p for p in checkpoints.iterdir() if _NAME.fullmatch(p.name) and (p / SUMS).is_file()]
    return sorted(found, key=lambda p: tuple(map(int, _NAME.fullmatch(p.name).groups())), reverse=True)  # type: ignore[union-attr]


def verify(folder: Path, names: Iterable[str]) -> None:
    """Compare files with SHA256SUMS.

    Raises:
        CheckpointError: a file is absent, changed or not listed; the sentence offers the checkpoint before.
    """
    sums = _read_sums(folder)
    for name in names:
        if name not in sums:
            raise damaged(folder, f"{name} is not listed in {SUMS}")
        try:
            found = sha256_file(folder / name)
        except OSError as error:
            raise damaged(folder, f"{name} cannot be read ({error.strerror})") from None
        if found != sums[name]:
            raise damaged(folder, f"{name} does not have the checksum that {SUMS} lists")


def listed(folder: Path) -> list[str]:
    """The file names in SHA256SUMS."""
    return list(_read_sums(folder))


def _read_sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(folder, f"{SUMS} cannot be read ({error})") from None
    sums = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not _FILE.fullmatch(name):
            raise damaged(folder, f"{SUMS} has the line {line[:60]!r}")
        sums[name] = digest
    return sums


def damaged(folder: Path, reason: str) -> CheckpointError:
    """The error for a checkpoint that cannot be used, with the way out."""
    names = [p.name for p in complete(folder.parent)]
    older = names[names.index(folder.name) + 1 :] if folder.name in names else names
    way_out = f"the one before it, {older[0]}, takes its place" if older else "the run starts from the beginning"
    return CheckpointError(f"checkpoint {folder} is damaged: {reason}. Remove that folder and start again: {way_out}")


def begin(checkpoints: Path, name: str) -> Path:
    """An empty folder NAME.tmp to write into; leftovers of an interrupted save are removed."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    for leftover in checkpoints.glob("*.tmp"):
        if leftover.is_symlink():  # the new "latest" of an interrupted `finish`
            leftover.unlink()
        else:
            shutil.rmtree(leftover)
    folder = checkpoints / f"{name}.tmp"
    folder.mkdir()
    return folder


def finish(folder: Path, sums: Mapping[str, str], keep: int) -> Path:
    """Make a written folder the newest checkpoint, durably, and remove all but the `keep` newest."""
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    final = folder.with_suffix("")
    if final.exists():
        shutil.rmtree(final)
    folder.rename(final)
    fsync_dir(final.parent)
    replace_symlink(final.parent / "latest", final.name)
    for old in complete(final.parent)[keep:]:
        half_gone = old.with_name(f"{old.name}.tmp")  # a leftover, not a checkpoint, if this is interrupted
        old.rename(half_gone)
        shutil.rmtree(half_gone)
    return final
