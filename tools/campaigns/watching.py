"""What the kernel says about the processes and files of one start, without asking the program itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tools.program import marked, text

_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Sample:
    """One rank at one moment.  Memory in KiB: RssAnon, what it has for itself alone, and shared memory that it maps."""

    anonymous: int
    shared: int
    descriptors: int
    threads: int

    def larger(self, other: Sample) -> Sample:
        """The largest of each."""
        return Sample(*map(max, vars(self).values(), vars(other).values()))


def ranks(mark: str) -> dict[int, int]:
    """Rank -> process, as far as they have been started; a rank's own children do not count."""
    found: dict[int, int] = {}
    for process in sorted(marked(mark)):
        with suppress(OSError):
            if rank := re.search(rb"(?:^|\0)PMI_RANK=(\d+)", Path(f"/proc/{process}/environ").read_bytes()):
                found.setdefault(int(rank[1]), process)
    return found


def sample(process: int) -> Sample | None:
    """The process now; None when it has ended."""
    try:
        status = text(Path(f"/proc/{process}/status"))
        numbers = dict(re.findall(r"^(RssAnon|RssShmem|Threads):\s+(\d+)", status, re.MULTILINE))
        descriptors = sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
        return Sample(int(numbers["RssAnon"]), int(numbers["RssShmem"]), descriptors, int(numbers["Threads"]))
    except (OSError, KeyError):
        return None


def shared_files(processes: Iterable[int]) -> set[Path]:
    """Files in /dev/shm that these processes map or have open, by the names that they have there."""
    found = set()
    for process in processes:
        with suppress(OSError):
            found |= {Path(name) for name in re.findall(rf"({_SHARED}/\S+)", text(Path(f"/proc/{process}/maps")))}
            links = [path.readlink() for path in Path(f"/proc/{process}/fd").iterdir()]
            found |= {link for link in links if link.is_relative_to(_SHARED)}
    return found


def files(folder: Path) -> tuple[int, int]:
    """(number, bytes) of the files below a folder; links are not followed."""
    sizes = [path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return len(sizes), sum(sizes)
