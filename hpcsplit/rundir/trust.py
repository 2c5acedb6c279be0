"""Whose folder it is: a run writes, and takes up, only what lies in folders of its own user."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from hpcsplit.errors import ConfigError


def check_folder(folder: Path, *, take_over: bool, instead: str) -> None:
    """Refuse a folder that is another user's, or that everybody may write; one that is absent is fine.

    Args:
        take_over: the user has asked for it all the same; it must be a folder nevertheless.
        instead: what to do otherwise, such as "choose another --run-dir".

    Raises:
        ConfigError: with owner or permissions, and the ways out.
    """
    try:
        state = os.stat(folder)
    except FileNotFoundError:
        if folder.is_symlink():
            raise ConfigError(
                f"{folder} is a link to {os.readlink(folder)}, which is absent; remove it, or {instead}"
            ) from None
        return
    except OSError as error:
        raise ConfigError(f"{folder} cannot be looked at ({error.strerror}); {instead}") from None
    linked = f" (a link to {os.path.realpath(folder)})" if folder.is_symlink() else ""
    if not stat.S_ISDIR(state.st_mode):
        raise ConfigError(f"{folder}{linked} is no folder; {instead}")
    if take_over:
        return
    if state.st_uid != os.geteuid():
        raise ConfigError(
            f"{folder}{linked} belongs to {user(state.st_uid)}, this run to {user(os.geteuid())}; {instead}, or accept "
            "what is there with --take-over"
        )
    if state.st_mode & stat.S_IWOTH and not state.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"{folder}{linked} has the permissions {stat.S_IMODE(state.st_mode):04o}, so everybody can change what is "
            f"in it; chmod o-w {folder}, {instead}, or accept what is there with --take-over"
        )


def check_links(files: Iterable[Path], inside: Path) -> None:
    """Refuse files that are links to a place outside of the folder `inside`, wherever that is.

    Raises:
        ConfigError: with the link and where it leads.
    """
    home = Path(os.path.realpath(inside))
    for path in files:
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
            raise ConfigError(f"{path} is a link to {os.path.realpath(path)}, outside of {home}; remove the link")


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def user(uid: int) -> str:
    """A user for people: name and number."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:  # as in some containers
        return f"uid {uid}"
