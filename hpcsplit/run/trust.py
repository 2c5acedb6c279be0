"""Whose folder it is: a run writes, and takes up, only what lies in folders of its own user."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hpcsplit.errors import ConfigError
from hpcsplit.files.nofollow import open_file
from hpcsplit.files.nofollow import state as state_of
from hpcsplit.nets.catalog import is_users

_OF_A_RUN = ("records.jsonl", "provenance.json", "checkpoints")


def check_folder(folder: Path, *, take_over: bool, may_be_link: bool = False, instead: str) -> None:
    """Refuse (ConfigError) a folder that is another user's, or that everybody may write; one that is absent is fine.

    Args:
        take_over: the user has asked for it all the same; it must be a folder nevertheless.
        may_be_link: it may be a link, which the user has named.
        instead: what to do otherwise, such as "choose another --run-dir".
    """
    is_link = folder.is_symlink()
    if is_link and not may_be_link:
        raise ConfigError(
            f"{folder} is a link to {os.readlink(folder)}; {instead}, or have links to folders followed with "
            "--follow-links"
        )
    try:
        state = os.stat(folder)
    except FileNotFoundError:
        if is_link:
            target = os.readlink(folder)
            raise ConfigError(f"{folder} is a link to {target}, which is absent; remove it, or {instead}") from None
        return
    except OSError as error:
        raise ConfigError(f"{folder} cannot be looked at ({error.strerror}); {instead}") from None
    what = f"{folder} (a link to {os.path.realpath(folder)})" if is_link else str(folder)
    if not stat.S_ISDIR(state.st_mode):
        raise ConfigError(f"{what} is no folder; {instead}")
    if take_over:
        return
    _check_owner(what, state, instead)
    if state.st_mode & stat.S_IWOTH and not state.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"{what} has the permissions {stat.S_IMODE(state.st_mode):04o}, so everybody can change what is "
            f"in it; chmod o-w {folder}, {instead}, or accept what is there with --take-over"
        )


def check_files(paths: Iterable[Path], *, take_over: bool, instead: str) -> None:
    """Refuse (ConfigError) what is no regular file, or another user's; one that is absent is fine."""
    for path in paths:
        state = state_of(path)
        if state is None:
            continue
        if not stat.S_ISREG(state.st_mode):
            os.close(open_file(path, os.O_RDONLY))  # says why not
        if not take_over:
            _check_owner(str(path), state, instead)


def check_code(model: str, config: Path, way_out: str) -> None:
    """Refuse (ConfigError) a network that is code to be run where only the configuration file of a run directory names
    it; `way_out` is how the user names it."""
    inside = config.name == "config.toml" and any((config.parent / name).exists() for name in _OF_A_RUN)
    if inside and is_users(model):
        raise ConfigError(
            f'model.name = "{model}" in {config} names code to be run, which is not taken from a run directory; '
            f"{way_out}"
        )


def _check_owner(what: str, state: os.stat_result, instead: str) -> None:
    if state.st_uid != os.geteuid():
        raise ConfigError(
            f"{what} belongs to {user(state.st_uid)}, this run to {user(os.geteuid())}; {instead}, or accept what is "
            "there with --take-over"
        )


def writers(folder: Path) -> str:
    """Who else can put something in the place of a folder's files, as a sentence; "" when nobody can."""
    result = []
    for place in (Path(os.path.abspath(folder)), *Path(os.path.abspath(folder)).parents):
        state = place.stat()
        if state.st_mode & stat.S_ISVTX:  # nobody can rename or remove what is somebody else's
            continue
        if state.st_mode & stat.S_IWOTH:
            result.append(f"{place} by everybody")
        elif state.st_mode & stat.S_IWGRP and (group := _group(state.st_gid)):
            result.append(f"{place} by the group {group}")
    if not result:
        return ""
    return (
        f"note: others can change this run, since folders can be written: {', '.join(result)}; chmod go-w, or add the "
        "sticky bit (chmod +t)"
    )


def _group(gid: int) -> str:
    """The name of a group; "" for that which a user has alone."""
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return f"gid {gid}"
    with suppress(KeyError):
        if not group.gr_mem and group.gr_name == pwd.getpwuid(os.geteuid()).pw_name:
            return ""
    return group.gr_name


def user(uid: int) -> str:
    """A user for people: name and number."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:  # as in some containers
        return f"uid {uid}"
