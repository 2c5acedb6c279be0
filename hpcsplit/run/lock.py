"""One run at a time in a folder: a lock file with a heartbeat, for file systems that nodes share and that lack flock.

The file holds one JSON line about its owner, a second one about the other ranks, and is touched every few seconds: its
modification time is the heartbeat.  Making it with O_EXCL is the only way to own it.  One that its owner left behind is
removed first, by whoever makes `lock.<token of the dead owner>` with O_EXCL: of several starters one, and never a lock
that is younger than the one looked at.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from hpcsplit.errors import ConfigError, LaunchError
from hpcsplit.files.atomic import append_text, discard, gone_on_failure, write_all
from hpcsplit.files.nofollow import opened, remove
from hpcsplit.host.process import Process

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_MOST_BYTES = 1 << 20  # read of a lock file
_NO_JSON = (ValueError, KeyError, TypeError, OverflowError, RecursionError)  # what a damaged one may lead to


@dataclass(frozen=True)
class Pace:
    """Times of a lock, all in seconds."""

    beat: float = 10.0  # between two signs of life
    limit: float = 60.0  # of silence, after which an owner on another machine is taken for dead
    patience: float = 3.0  # for an owner on this machine that is about to end
    ending: float = 12.0  # for the other ranks of one that has ended
    writing: float = 5.0  # for whoever has made the file to write into it
    look: float = 0.1  # between two looks at somebody else's lock


class RunLock:
    """A lock file that this process owns, and the thread that keeps it alive.

    Where somebody else has taken it, as may happen to a run that was suspended for long, the thread raises LaunchError.
    """

    def __init__(self, path: Path, owner: Owner, pace: Pace) -> None:
        self.path, self.owner, self.pace = path, owner, pace
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="run-lock", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, path: Path, pace: Pace | None = None, say: Callable[[str], None] | None = None) -> RunLock:
        """Own the lock file `path`, in a folder that is there; `say` is told when this has to wait for the silence of
        an owner on another machine, up to `pace.limit`.

        Raises:
            LaunchError: its owner is alive.
            ConfigError: `path` is no regular file.
            OSError: it cannot be made or removed.
        """
        pace, me = pace or Pace(), Owner.this()
        while True:
            if _make(path, me):
                seen = look(path)
                if seen and seen.identity == me.token:
                    return cls(path, me, pace)
            elif seen := look(path):
                _await_its_end(path, seen, me, pace, say or (lambda sentence: None))
                _remove(path, seen.identity, me, pace)

    def add(self, others: Sequence[Process]) -> None:
        """Name the other ranks of this run: while one of them lives on this machine, the lock is not stale."""
        self.check()
        append_text(self.path, json.dumps([vars(process) for process in others]) + "\n")

    def check(self) -> None:
        """Give a sign of life; LaunchError where the lock is somebody else's now: nothing more may be written."""
        try:
            with opened(self.path, os.O_RDONLY) as descriptor:
                seen = look_at(descriptor)
                if seen.identity == self.owner.token:
                    return os.utime(descriptor)
        except FileNotFoundError:
            raise LaunchError(self._lost("is gone")) from None
        except ConfigError:
            raise LaunchError(self._lost("is no file any more")) from None
        except OSError:  # the file system does not answer: the next time
            return
        raise LaunchError(self._lost(f"belongs to {seen.owner}" if seen.owner else "is damaged"))

    def release(self) -> None:
        """Remove the lock file, if it is still this run's."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=self.pace.patience)
        with suppress(OSError):
            _remove(self.path, self.owner.token, self.owner, self.pace)

    def _live(self) -> None:
        while not self._ended.wait(self.pace.beat):
            try:
                self.check()
            except LaunchError as error:
                if threading.excepthook is not threading.__excepthook__:
                    raise
                print(f"hpcsplit: {error}", file=sys.stderr, flush=True)
                os._exit(error.exit_code)

    def _lost(self, what: str) -> str:
        return (
            f"the lock {self.path} {what}, so this run has been taken for dead, which takes {self.pace.limit:.0f} s "
            "without a sign of life; it ends here and writes nothing more. Go on with the other run, or start again"
        )


# ------------------------------------------------------------------------------------------------ what it says


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.  `job` is the Slurm job ("" without) and `restart` how often that was requeued."""

    token: Annotated[str, msgspec.Meta(pattern=r"^[^\W_]{1,63}\Z")]  # it is a part of a file's name
    host: str
    process: Process
    job: str
    restart: int
    since: str

    @classmethod
    def this(cls) -> Owner:
        job, restart = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            secrets.token_hex(8),
            socket.gethostname(),
            Process.this(),
            f"{os.environ.get('SLURM_CLUSTER_NAME', '')}:{job}" if job else "",
            int(restart) if restart.isdigit() else 0,
            time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )

    def __str__(self) -> str:
        job = f", Slurm job {self.job.partition(':')[2]}" if self.job else ""
        return f"process {self.process.pid} on {self.host}{job}, since {self.since}"


@dataclass(frozen=True)
class LockFile:
    """A lock file at one moment; `owner` is None where it is empty or damaged."""

    owner: Owner | None
    others: tuple[Process, ...]  # further ranks of the owner's run
    modified: float  # seconds, by the clock of the file system
    size: int
    inode: int

    @property
    def identity(self) -> str:
        """What tells this lock from one that takes its place."""
        return self.owner.token if self.owner else f"unknown-{self.inode}-{self.modified}"


def look(path: Path) -> LockFile | None:
    """The lock file as it is now, or None when there is none.  ConfigError when it is no regular file."""
    try:
        with opened(path, os.O_RDONLY) as descriptor:
            return look_at(descriptor)
    except FileNotFoundError:
        return None


def look_at(descriptor: int) -> LockFile:
    """As `look`, of a file that is open."""
    lines = os.read(descriptor, _MOST_BYTES).decode("utf-8", "replace").split("\n")
    state = os.fstat(descriptor)
    owner: Owner | None = None
    others: list[Process] = []
    with suppress(*_NO_JSON):
        owner = msgspec.json.decode(lines[0], type=Owner)
    for line in lines[1:]:
        with suppress(*_NO_JSON):
            others += msgspec.json.decode(line, type=list[Process])
    return LockFile(owner, tuple(others), state.st_mtime, state.st_size, state.st_ino)


# ------------------------------------------------------------------------------------------------ the file


def _make(path: Path, owner: Owner) -> bool:
    """Whether the file was made, by this process alone."""
    try:
        with opened(path, _NEW, 0o600) as descriptor, gone_on_failure(path):
            write_all(descriptor, msgspec.json.encode(owner) + b"\n")
            os.fsync(descriptor)
    except FileExistsError:
        return False
    return True


def _remove(path: Path, identity: str, me: Owner, pace: Pace) -> None:
    """Remove the lock with this identity, if it is still there and nobody else is about to; else wait for a moment."""
    claim = path.with_name(f"{path.name}.{identity}")
    if not _make(claim, me):
        other = look(claim)
        if other and _dead(claim, other, me, pace):
            _remove(claim, other.identity, me, pace)
        else:
            time.sleep(pace.look / 10)
        return
    try:
        now = look(path)
        if now and now.identity == identity:
            remove(path)
    finally:
        discard(claim)


# ------------------------------------------------------------------------------------------------ is its owner alive?


def _dead(path: Path, seen: LockFile, me: Owner, pace: Pace) -> bool:
    """Whether the owner of a lock is certainly gone."""
    owner = seen.owner
    if _alive_here(seen, me):
        return False
    if owner and owner.process.here:
        return True
    if owner and owner.job and owner.job == me.job and owner.restart < me.restart:
        return True  # Slurm requeues a job when it has ended everywhere
    return _age(path, seen) > (pace.limit if seen.size else pace.writing)


def _alive_here(seen: LockFile, me: Owner) -> Process | None:
    """A living process of the owner's run on this machine; this one itself would know that it owns the lock."""
    processes = [seen.owner.process, *seen.others] if seen.owner else []
    return next((p for p in processes if p.here and p != me.process and p.alive), None)


def _age(path: Path, seen: LockFile) -> float:
    """Seconds since the heartbeat: two times of the same file system, since the clocks of two hosts differ."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}.now")
    try:
        with opened(probe, _NEW, 0o600) as descriptor:
            os.utime(descriptor)
            return os.fstat(descriptor).st_mtime - seen.modified
    finally:
        discard(probe)


def _await_its_end(path: Path, first: LockFile, me: Owner, pace: Pace, say: Callable[[str], None]) -> None:
    """Return when this lock is stale or no longer there; LaunchError when its owner gives a sign of life."""
    begun, told = time.monotonic(), False
    while (now := look(path)) and now.identity == first.identity and not _dead(path, now, me, pace):
        waited, survivor = time.monotonic() - begun, _alive_here(now, me)
        if survivor and now.owner:
            if waited > (pace.patience if survivor == now.owner.process else pace.ending):
                raise LaunchError(_at_work(path, now.owner, survivor))
            time.sleep(pace.look)
            continue
        if now.modified != first.modified:
            raise LaunchError(_at_work(path, now.owner, None))
        if waited > pace.limit:  # whatever the file system's clock says
            return
        if now.size and not told:
            told = True
            say(f"{path} is that of {now.owner or 'a run'}; waiting up to {pace.limit:.0f} s for a sign of life")
        time.sleep(10 * pace.look)


def _at_work(path: Path, owner: Owner | None, survivor: Process | None) -> str:
    sentence = f"another run is at work in {path.parent}: {owner or 'its lock is damaged but touched'}"
    if owner and survivor and survivor != owner.process:
        return f"{sentence}; that process has ended, but process {survivor.pid} of its run lives on here: end it"
    return f"{sentence}; wait for it, stop it, or choose another --run-dir"
