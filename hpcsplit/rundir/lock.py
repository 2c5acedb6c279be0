"""One run at a time in a folder: a lock file with a heartbeat, for file systems that nodes share and that lack flock.

The file holds one JSON line about its owner, a second one about the other ranks, and is touched every few seconds: its
modification time is the heartbeat.  Making it with O_EXCL is the only way to own it.  One that its owner left behind is
removed first, by whoever makes `lock.<token of the dead owner>` with O_EXCL: of several starters one, and never a lock
that is younger than the one looked at.
"""

from __future__ import annotations

import errno
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

from hpcsplit.errors import ConfigError, LaunchError
from hpcsplit.rundir.process import Process

_MOST_BYTES = 1 << 20  # read of a lock file
_NO_JSON = (ValueError, KeyError, TypeError, RecursionError)  # what a damaged one may lead to
_WAY_OUT = "wait for it, stop it, or choose another --run-dir"


@dataclass(frozen=True)
class Pace:
    """Times of a lock, all in seconds."""

    beat: float = 10.0  # between two signs of life
    limit: float = 60.0  # of silence, after which an owner on another machine is taken for dead
    patience: float = 3.0  # for an owner on this machine that is about to end
    ending: float = 12.0  # for the other ranks of one that has ended
    writing: float = 5.0  # for whoever has made the file to write into it
    look: float = 0.1  # between two looks at somebody else's lock


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.  `job` is the Slurm job ("" without) and `restart` how often that was requeued."""

    token: str
    host: str
    process: Process
    job: str
    restart: int
    since: str

    @classmethod
    def this(cls) -> Owner:
        job = os.environ.get("SLURM_JOB_ID", "")
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            secrets.token_hex(8),
            socket.gethostname(),
            Process.this(),
            f"{os.environ.get('SLURM_CLUSTER_NAME', '')}:{job}" if job else "",
            int(restart) if restart.isdigit() else 0,
            time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )

    @classmethod
    def from_json(cls, line: str) -> Owner | None:
        with suppress(*_NO_JSON):
            values = json.loads(line)
            texts = [values[key] for key in ("token", "host", "job", "since")]
            token, host, job, since = texts
            if all(isinstance(text, str) for text in texts) and token.isalnum() and len(token) < 64:
                return cls(token, host, Process.from_json(values["process"]), job, int(values["restart"]), since)
        return None

    def to_json(self) -> str:
        return json.dumps({**vars(self), "process": vars(self.process)})

    def __str__(self) -> str:
        job = f", Slurm job {self.job.partition(':')[2]}" if self.job else ""
        return f"process {self.process.pid} on {self.host}{job}, since {self.since}"


@dataclass(frozen=True)
class Seen:
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
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps([vars(process) for process in others]) + "\n")

    def check(self) -> None:
        """Give a sign of life.

        Raises:
            LaunchError: the lock is somebody else's now; nothing more may be written.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise LaunchError(self._lost("is gone")) from None
        except OSError:  # the file system does not answer: the next time
            return
        try:
            seen = _look(descriptor)
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


def look(path: Path) -> Seen | None:
    """The lock file as it is now, or None when there is none.  ConfigError when it is no regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigError(f"{path} is a link, not a lock file; remove it, or choose another --run-dir") from None
        raise
    try:
        return _look(descriptor)
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a lock file; remove it, or choose another --run-dir") from None
    finally:
        os.close(descriptor)


def _look(descriptor: int) -> Seen:
    lines = os.read(descriptor, _MOST_BYTES).decode("utf-8", "replace").split("\n")
    state = os.fstat(descriptor)
    others: list[Process] = []
    for line in lines[1:]:
        with suppress(*_NO_JSON):
            others += [Process.from_json(values) for values in json.loads(line)]
    return Seen(Owner.from_json(lines[0]), tuple(others), state.st_mtime, state.st_size, state.st_ino)


def _make(path: Path, owner: Owner) -> bool:
    """Whether the file was made, by this process alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, f"{owner.to_json()}\n".encode())
        os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
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
            path.unlink()
    finally:
        claim.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ is its owner alive?


def _dead(path: Path, seen: Seen, me: Owner, pace: Pace) -> bool:
    """Whether the owner of a lock is certainly gone."""
    owner = seen.owner
    if owner and owner.process.here:
        return not _alive_here(seen, me)
    if owner and owner.job and owner.job == me.job and owner.restart < me.restart:
        return True  # Slurm requeues a job when it has ended everywhere
    return _age(path, seen) > (pace.limit if seen.size else pace.writing)


def _alive_here(seen: Seen, me: Owner) -> Process | None:
    """A living process of the owner's run on this machine; this one itself would know that it owns the lock."""
    processes = [seen.owner.process, *seen.others] if seen.owner else []
    return next((p for p in processes if p.here and p != me.process and p.alive), None)


def _age(path: Path, seen: Seen) -> float:
    """Seconds since the heartbeat: two times of the same file system, since the clocks of two hosts differ."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}.now")
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime - seen.modified
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def _await_its_end(path: Path, first: Seen, me: Owner, pace: Pace, say: Callable[[str], None]) -> None:
    """Return when this lock is stale or no longer there; LaunchError when its owner gives a sign of life."""
    begun, told = time.monotonic(), False
    while (now := look(path)) and now.identity == first.identity and not _dead(path, now, me, pace):
        here = bool(now.owner and now.owner.process.here)
        waited = time.monotonic() - begun
        if here and now.owner and waited > (pace.patience if now.owner.process.alive else pace.ending):
            raise LaunchError(_at_work(path, now, me))
        if not here and now.modified != first.modified:
            raise LaunchError(_at_work(path, now, me))
        if not here and now.size and not told:
            told = True
            left = max(0.0, pace.limit - _age(path, now))
            say(f"{path} is that of {now.owner or 'an unknown run'}; waiting up to {left:.0f} s for a sign of life")
        time.sleep(pace.look if here else 10 * pace.look)


def _at_work(path: Path, seen: Seen, me: Owner) -> str:
    sentence = f"another run is at work in {path.parent}: {seen.owner or 'its lock is damaged but touched'}"
    survivor = _alive_here(seen, me)
    if seen.owner and survivor and survivor != seen.owner.process:
        return f"{sentence}; that process has ended, but process {survivor.pid} of its run lives on here: end it"
    return f"{sentence}; {_WAY_OUT}"
