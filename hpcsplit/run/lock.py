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
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcsplit.errors import ConfigError, LaunchError
from hpcsplit.files.atomic import append_text, discard, write_all
from hpcsplit.files.nofollow import open_file, remove
from hpcsplit.host.process import Process
from hpcsplit.run.owner import LockFile, Owner, look, look_at


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
        """Own the lock file `path`, in a folder that is there.

        Args:
            say: is told when this has to wait for the silence of an owner on another machine, up to `pace.limit`.

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
        """Give a sign of life.

        Raises:
            LaunchError: the lock is somebody else's now; nothing more may be written.
        """
        try:
            descriptor = open_file(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise LaunchError(self._lost("is gone")) from None
        except ConfigError:
            raise LaunchError(self._lost("is no file any more")) from None
        except OSError:  # the file system does not answer: the next time
            return
        try:
            seen = look_at(descriptor)
            if seen.identity == self.owner.token:
                os.utime(descriptor)
                return
        except OSError:
            return
        finally:
            os.close(descriptor)
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


# ------------------------------------------------------------------------------------------------ the file


def _make(path: Path, owner: Owner) -> bool:
    """Whether the file was made, by this process alone."""
    try:
        descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    try:
        write_all(descriptor, f"{owner.to_json()}\n".encode())
        os.fsync(descriptor)
    except OSError:
        discard(path)
        raise
    finally:
        os.close(descriptor)
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
    descriptor = open_file(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime - seen.modified
    finally:
        os.close(descriptor)
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
