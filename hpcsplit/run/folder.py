"""The folder of a run: where everything lies, whose it is, and what is written down about each start."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec

from hpcsplit.config import Config, load
from hpcsplit.config.config import changeable, differences
from hpcsplit.errors import CheckpointError, ConfigError, LaunchError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.files import nofollow, scratch
from hpcsplit.files.atomic import REFUSALS, make_folders, write_failure, write_in_words
from hpcsplit.files.nofollow import read_bytes, read_text
from hpcsplit.files.paths import expanded
from hpcsplit.host.printable import printable
from hpcsplit.host.process import Process
from hpcsplit.run import provenance, trust
from hpcsplit.run.lock import RunLock

NO_RUN_DIR = "choose another --run-dir"
_LISTED = 8  # checkpoints that a refusal names
_SLOW_FILES_S = 15.0  # for a folder that rank 0 has made to show on another node
_LEFT_OVER = re.compile(
    r"\.(config\.toml|records\.jsonl|summary\.txt|curves\.png|(split|forecast|provenance)\.json|latest|best)\.\d+\.tmp"
    r"|\.lock\.[0-9a-f]+\.now|rank-\d+\.sign-new|records\.jsonl\.tmp"
)
_held: dict[str, RunLock] = {}  # of run directories that this process has taken, by their real path


_Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e300)]


class _Split(TypedDict):
    """The cuts of a network, and what each stage costs."""

    cuts: list[int]
    costs: list[float]


class _Times(TypedDict):
    exact_s: _Positive
    parallel_s: _Positive


class _Forecast(TypedDict):
    """What a report puts beside a run."""

    key: Any
    batch_size: _Positive
    forecast: _Times
    one_rank_samples_per_s: _Positive | None
    cuts: Any
    profile: Any


class _File:
    """The path of a file in the folder of a run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run_dir: RunDir, owner: type[RunDir]) -> Path:
        return run_dir.home / self.name


@dataclass(frozen=True)
class RunDir:
    """Paths inside a run directory, and what may be done to it."""

    path: Path
    take_over: bool = False  # go on in a folder that is another user's or another run's
    follow_links: bool = False  # folders in it may be links to places elsewhere, such as on scratch

    @property
    def home(self) -> Path:
        """The folder itself, where `path` leads: the way into it has no link that would be refused."""
        return nofollow.without_links(self.path)

    def _folder(self, name: str) -> Path:
        folder = self.home / name
        return Path(os.path.realpath(folder)) if self.follow_links else folder

    @property
    def checkpoints(self) -> Path:
        return self._folder("checkpoints")

    records = _File("records.jsonl")
    config = _File("config.toml")
    split = _File("split.json")
    forecast = _File("forecast.json")
    provenance = _File("provenance.json")
    picture = _File("curves.png")
    summary = _File("summary.txt")
    lock = _File("lock")

    @property
    def tensorboard(self) -> Path:
        return self._folder("tensorboard")

    def log(self, rank: int) -> Path:
        return self._folder("log") / f"rank-{rank:03d}.log"

    def wait_for_log(self, rank: int) -> Path:
        """The log file of a rank, when its folder, made by rank 0, shows here; ConfigError where it does not, within a
        few seconds."""
        path, begun = self.log(rank), time.monotonic()
        while not path.parent.is_dir():
            if time.monotonic() - begun > _SLOW_FILES_S:
                raise ConfigError(
                    f"rank {rank} does not see {path.parent}, {_SLOW_FILES_S:.0f} s after rank 0 has made it; put "
                    "--run-dir on a file system that all nodes share"
                )
            for folder in (self.path.parent, self.path):
                with suppress(OSError):
                    os.listdir(folder)  # makes a file system that caches names look again
            time.sleep(0.1)
        return path

    def store(self, configured: str, needed_bytes: int = 0) -> Path:
        """The folder of the auxiliary store, of this run alone; environment variables in `configured` are filled in.

        "scratch" takes the first of the node's own disks that has the rows of an earlier start, or room for
        `needed_bytes`.  The folder is made here, since a predictable name on a disk that others write too may be
        anybody's: what cannot be made is left to the store to complain about.

        Raises:
            ConfigError: a variable is not set, or the folder is another user's.
            StoreError: no disk of the node has room.
        """
        if configured == "scratch":
            folder = scratch.choose(self._store_name, needed_bytes)
        else:
            (folder,) = self.store_places(configured)
        folder = Path(os.path.realpath(folder.parent)) / folder.name
        with suppress(OSError, ConfigError):  # the checks below say better what is in the way
            make_folders(folder)
        instead = "choose another store.path"
        trust.check_folder(folder, take_over=self.take_over, instead=instead)
        rows = [folder / name for name in nofollow.names(folder) if name.endswith(".h5")]
        trust.check_files(rows, take_over=self.take_over, instead=instead)
        return folder

    def store_places(self, configured: str) -> list[Path]:
        """Where `store` may put the folder, several only for "scratch"; nothing is made.  ConfigError for a variable
        that is not set."""
        if configured == "scratch":
            return [place.path / self._store_name for place in scratch.candidates() if not place.obstacle]
        if not configured:
            return [self._folder("aux")]
        return [expanded(configured, "store.path =") / self._store_name]

    @property
    def _store_name(self) -> str:
        place = self.path.resolve()
        return f"{place.name}-{hashlib.sha256(bytes(place)).hexdigest()[:8]}"

    def check(self, config: Config) -> None:
        """Raise ConfigError where `create` would, as far as that can be seen; nothing is made."""
        self.check_trust()
        self._check_config(config)

    def create(self, config: Config) -> None:
        """Make the folder and take it for this process, until `release`; rank 0 only.

        Raises:
            ConfigError: it cannot be made, or is another user's or another run's.
            StoreError: its disk is full.
            LaunchError: another run is at work in it.
        """
        self.check_trust()
        try:
            make_folders(self.home)
            self._take()
            try:
                self._check_config(config)
                nofollow.make_folder(self.log(0).parent)
                self._clear()
                if note := trust.writers(self.home):
                    _say(note)
            except BaseException:
                self.release()
                raise
        except OSError as error:
            if error.errno in REFUSALS:
                raise write_failure(self.path, error) from None
            raise ConfigError(
                f"cannot make the run directory {self.path}: {error.strerror}; choose another --run-dir"
            ) from None

    def checkpoint(self, name: str = "") -> Path:
        """The complete checkpoint of this name, after N epochs ("7"), the best one ("best"), or the newest ("" or
        "latest").  CheckpointError where there is none."""
        try:
            there = ckpt.complete(self.checkpoints)
        except OSError as error:
            raise CheckpointError(
                f"{self.checkpoints} cannot be read: {error.strerror}; is it the run directory?"
            ) from None
        if not there:
            raise CheckpointError(
                f"{self.path} has no complete checkpoint (looked in {self.checkpoints}); is it the run directory?"
            )
        names = [folder.name for folder in there]
        if name == "latest":
            name = ""
        elif name.isdecimal() and len(name) < 10:
            name = ckpt.folder_name(int(name))
        if name == ckpt.BEST:
            if best := ckpt.best_of(self.checkpoints):
                return best
            raise CheckpointError(
                f"{self.path} has no checkpoint that is marked as the best one, as a run with checkpoint.best = true "
                f"has; it has {', '.join(names[:_LISTED])}"
            )
        if name and name not in names:
            older = f" and {len(names) - _LISTED} older ones" if len(names) > _LISTED else ""
            raise CheckpointError(
                f"{self.path} has no complete checkpoint {name}; it has {', '.join(names[:_LISTED])}{older}"
            )
        return there[names.index(name) if name else 0]

    def release(self) -> None:
        """Let others have the folder; does nothing where this process has not taken it."""
        if lock := _held.pop(self._key, None):
            lock.release()

    def check_held(self) -> None:
        """Raise LaunchError where this process has taken the folder and somebody else has it now."""
        if lock := _held.get(self._key):
            lock.check()

    @property
    def _key(self) -> str:
        return str(self.path.resolve())

    def _clear(self) -> None:
        """Remove what starts that were killed had not finished writing."""
        for folder in (self.home, self.checkpoints, self.log(0).parent):
            for name in nofollow.names(folder):
                if _LEFT_OVER.fullmatch(name):
                    nofollow.remove(folder / name)

    def _take(self) -> None:
        if self._key in _held:
            try:
                return _held[self._key].check()
            except LaunchError:  # the folder has been removed and made again
                self.release()
        _held[self._key] = RunLock.acquire(self.lock, say=_say)

    def check_trust(self) -> None:
        """Raise ConfigError where something in the folder is no file of a run, or another user's."""
        check_folder = partial(trust.check_folder, take_over=self.take_over, instead=NO_RUN_DIR)
        logs = (self.log(0).parent, self.tensorboard)
        check_folder(self.path, may_be_link=True)
        for folder in (self.checkpoints, *logs):
            check_folder(folder)
        files = [self.records, self.config, self.split, self.forecast, self.provenance, self.picture, self.summary]
        files += [folder / name for folder in logs for name in nofollow.names(folder)]
        for folder in (self.checkpoints / name for name in nofollow.names(self.checkpoints) if ckpt.is_ours(name)):
            files += [folder / name for name in nofollow.names(folder)]
            check_folder(folder)
        files.append(self.checkpoints / ckpt.BEST)
        trust.check_files([*files, self.lock], take_over=self.take_over, instead=NO_RUN_DIR)

    def _check_config(self, config: Config) -> None:
        """Refuse to begin anew over the epochs of another run; where there is a checkpoint, that decides instead."""
        if self.take_over or ckpt.complete(self.checkpoints) or not self.finished_epochs():
            return
        try:
            theirs = self.load_config()
        except ConfigError:  # absent or damaged: nothing says that it is another run
            return
        ours, prints = config.fingerprint(), theirs.fingerprint()
        if changed := [section for section in ours if prints.get(section) != ours[section]]:
            keys = differences(theirs.as_dict(), config.as_dict(), changed)
            raise ConfigError(
                f"{self.path} has {self.finished_epochs()} finished epochs of a run with another "
                f"{' and '.join(changed)}: {keys}. Change it back, choose another "
                "--run-dir, or begin anew over them with --take-over; a run goes on with other values of "
                f"{changeable()}"
            )

    def finished_epochs(self) -> int:
        """The lines of records.jsonl."""
        try:
            return read_bytes(self.records).count(b"\n")
        except OSError:
            return 0

    def load_config(self) -> Config:
        """The configuration that it was last started with.  ConfigError where it cannot be read."""
        return load(self.config, read=read_bytes, recorded=True)

    def load_split(self, key: str) -> dict[str, Any] | None:
        """The cuts chosen at the first start with this key, or None."""
        chosen = self._splits().get(key)
        if chosen and chosen["sha256"] == _digest(chosen["split"]):
            split: dict[str, Any] = chosen["split"]
            with suppress(msgspec.ValidationError):
                msgspec.convert(split, _Split)
                return split
        return None

    def save_split(self, key: str, chosen: dict[str, Any]) -> None:
        """Keep the cuts for later starts."""
        entry = {"split": chosen, "sha256": _digest(chosen)}
        write_in_words(self.split, json.dumps({**self._splits(), key: entry}) + "\n")

    def _splits(self) -> dict[str, dict[str, Any]]:
        try:
            entries = json.loads(read_text(self.split))
            return {key: entry for key, entry in entries.items() if {"split", "sha256"} <= entry.keys()}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}

    def save_forecast(self, values: Mapping[str, Any]) -> None:
        """Write down what is expected of the run, before it begins."""
        write_in_words(self.forecast, json.dumps(values, indent=1) + "\n")

    def load_forecast(self) -> dict[str, Any] | None:
        """What was expected of the run, or None."""
        try:
            values: dict[str, Any] = json.loads(read_text(self.forecast))
            msgspec.convert(values, _Forecast)
            return values
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RecursionError):
            logging.getLogger("hpcsplit").warning("%s is damaged and left out", self.forecast)
        return None

    def note_start(
        self,
        config: Config,
        places: Sequence[Mapping[str, Any]],
        mpi: str,
        cuts: Sequence[int],
        begins_with: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write config.toml and add this start, on these `provenance.place`s of all ranks, to provenance.json, and the
        checkpoint of another run that it begins with; rank 0 only.  Returns what was added."""
        write_in_words(self.config, config.to_toml())
        checkpoints = ckpt.complete(self.checkpoints)
        start = provenance.facts(config, places, mpi, cuts) | {"begins_with": begins_with}
        start = provenance.add(self.provenance, start, checkpoints[0].name if checkpoints else None)
        if lock := _held.get(self._key):
            with suppress(OSError):
                lock.add(msgspec.convert([place["process"] for place in places], list[Process]))
        return start


def _say(sentence: str) -> None:
    print(f"hpcsplit: {printable(sentence)}", file=sys.stderr, flush=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
