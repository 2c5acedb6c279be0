"""The folders of checkpoints: checkpoints/epoch-0007-step-000000/{stage-000.h5, …, manifest.h5, SHA256SUMS}.

SHA256SUMS is written last, in a folder that still ends in .tmp; the rename makes it count.  No file is parsed
before its checksum has been compared.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from hpcsplit.errors import CheckpointError
from hpcsplit.files.atomic import fsync_dir, make_folders, replace_symlink, sha256_file, write_text
from hpcsplit.files.nofollow import make_folder, names, open_file, read_text, remove_tree, replace
from hpcsplit.files.scratch import memory_available_bytes

MANIFEST = "manifest.h5"
SUMS = "SHA256SUMS"
BEST = "best"
_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{6})")
_LEFT_OVER = re.compile(rf"{_NAME.pattern}\.tmp|\.(latest|best)\.\d+\.tmp")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def stage_file(stage: int) -> str:
    return f"stage-{stage:03d}.h5"


def folder_name(epoch: int, step: int = 0) -> str:
    """The name of the checkpoint after `epoch` finished epochs and `step` steps of the next one."""
    return f"epoch-{epoch:04d}-step-{step:06d}"


def is_ours(name: str) -> bool:
    """Whether a checkpoint has this name."""
    return bool(_NAME.fullmatch(name))


def complete(checkpoints: Path) -> list[Path]:
    """The complete checkpoints, newest first.  ConfigError where one of them is a link."""
    result = [p for p in map(checkpoints.joinpath, filter(is_ours, names(checkpoints))) if SUMS in names(p)]
    return sorted(result, key=lambda p: [int(number) for number in p.name.split("-")[1::2]], reverse=True)


def verify(folder: Path, names: Iterable[str]) -> None:
    """Compare files with SHA256SUMS.

    CheckpointError, which offers the checkpoint before, where one is absent, changed or not listed.
    """
    sums = listed(folder)
    for name in names:
        if name not in sums:
            raise damaged(folder, f"{name} is not listed in {SUMS}")
        try:
            result = sha256_file(folder / name)
        except OSError as error:
            raise damaged(folder, f"{name} cannot be read ({error.strerror})") from None
        if result != sums[name]:
            raise damaged(folder, f"{name} does not have the checksum that {SUMS} lists")


def image(folder: Path, name: str, most_bytes: int = 0) -> bytes:
    """The content of a file, read once, when it has the checksum that SHA256SUMS lists.

    CheckpointError as `verify`, or where it has over `most_bytes`; 0: as many as there is memory for.
    """
    sums, most = listed(folder), min(memory_available_bytes(), most_bytes or sys.maxsize)
    if name not in sums:
        raise damaged(folder, f"{name} is not listed in {SUMS}")
    try:
        with open(folder / name, "rb", opener=open_file) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise CheckpointError(
                    f"{folder / name} has {size} bytes, at most {most} are read; is it the run's own?"
                )
            content = file.read()
    except OSError as error:
        raise damaged(folder, f"{name} cannot be read ({error.strerror})") from None
    if hashlib.sha256(content).hexdigest() != sums[name]:
        raise damaged(folder, f"{name} does not have the checksum that {SUMS} lists")
    return content


def listed(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that SHA256SUMS lists, by its name.  CheckpointError where that is damaged."""
    try:
        lines = read_text(folder / SUMS).splitlines()
    except OSError as error:
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
    whole = [p.name for p in complete(folder.parent)]
    older = whole[whole.index(folder.name) + 1 :] if folder.name in whole else whole
    way_out = f"the one before it, {older[0]}, takes its place" if older else "the run starts from the beginning"
    return CheckpointError(f"checkpoint {folder} is damaged: {reason}. Remove that folder and start again: {way_out}")


def begin(checkpoints: Path, name: str) -> Path:
    """An empty folder NAME.tmp to write into; leftovers of an interrupted save are removed."""
    make_folders(checkpoints)
    for leftover in filter(_LEFT_OVER.fullmatch, names(checkpoints)):
        remove_tree(checkpoints / leftover)
    folder = checkpoints / f"{name}.tmp"
    make_folder(folder)
    return folder


def finish(folder: Path, sums: Mapping[str, str], keep: int, *, best: bool = False) -> Path:
    """Make a written folder the newest checkpoint, durably, and with `best` the one that is marked as that; remove all
    but the `keep` newest and the marked one."""
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    final = folder.with_suffix("")
    remove_tree(final)
    replace(folder, final)
    fsync_dir(final.parent)
    try:
        replace_symlink(final.parent / "latest", final.name)
    except OSError as error:
        _warn(final.parent / "latest", error.strerror or str(error))
    if best:
        mark_best(final.parent, final.name)
    marked = best_of(final.parent)
    for old in (folder for folder in complete(final.parent)[keep:] if folder != marked):
        half_gone = old.with_name(f"{old.name}.tmp")  # a leftover, not a checkpoint, if this is interrupted
        replace(old, half_gone)
        remove_tree(half_gone)
    return final


def mark_best(checkpoints: Path, name: str) -> None:
    """Write down, in the file "best" beside the checkpoints, that this one is that of the best epoch so far."""
    write_text(checkpoints / BEST, f"{name}\n")


def best_of(checkpoints: Path) -> Path | None:
    """The complete checkpoint that is marked as the best one."""
    try:
        name = read_text(checkpoints / BEST).strip()
    except (OSError, ValueError):
        return None
    return next((folder for folder in complete(checkpoints) if folder.name == name), None)


@cache
def _warn(latest: Path, reason: str) -> None:
    """Say, once, that the link for people is not there; the program itself goes by the names of the folders."""
    logging.getLogger("hpcsplit").warning(
        "%s does not lead to the newest checkpoint (%s), which changes nothing for the run; where it is a folder, as "
        "in a copy that followed links, remove it",
        latest,
        reason,
    )
