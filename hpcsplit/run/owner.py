"""What a lock file says: who owns it, and when that one last gave a sign of life."""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hpcsplit.files.nofollow import open_file
from hpcsplit.host.process import Process

_MOST_BYTES = 1 << 20  # read of a lock file
_NO_JSON = (ValueError, KeyError, TypeError, OverflowError, RecursionError)  # what a damaged one may lead to


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
            owner = msgspec.json.decode(line, type=cls)
            return owner if owner.token.isalnum() and len(owner.token) < 64 else None
        return None

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

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
        descriptor = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return look_at(descriptor)
    finally:
        os.close(descriptor)


def look_at(descriptor: int) -> LockFile:
    """As `look`, of a file that is open."""
    lines = os.read(descriptor, _MOST_BYTES).decode("utf-8", "replace").split("\n")
    state = os.fstat(descriptor)
    others: list[Process] = []
    for line in lines[1:]:
        with suppress(*_NO_JSON):
            others += msgspec.json.decode(line, type=list[Process])
    return LockFile(Owner.from_json(lines[0]), tuple(others), state.st_mtime, state.st_size, state.st_ino)
