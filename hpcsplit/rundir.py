"""The folder of a run: where everything lies, and who made it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hpcsplit import __version__
from hpcsplit.errors import ConfigError, LaunchError
from hpcsplit.files.atomic import write_text

_HELD: dict[str, int] = {}  # lock files of run directories, held until the process ends


@dataclass(frozen=True)
class RunDir:
    """Paths inside a run directory."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def records(self) -> Path:
        return self.path / "records.jsonl"

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def split(self) -> Path:
        return self.path / "split.json"

    @property
    def picture(self) -> Path:
        return self.path / "curves.png"

    @property
    def summary(self) -> Path:
        return self.path / "summary.txt"

    def log(self, rank: int) -> Path:
        return self.path / "log" / f"rank-{rank:03d}.log"

    def store(self, configured: str) -> Path:
        """The folder of the auxiliary store, of this run alone; environment variables in `configured` are filled in."""
        if not configured:
            return self.path / "aux"
        expanded = os.path.expandvars(os.path.expanduser(configured))
        if "$" in expanded:
            raise ConfigError(f'store.path = "{configured}": an environment variable in it is not set here')
        place = self.path.resolve()
        return Path(expanded) / f"{place.name}-{hashlib.sha256(bytes(place)).hexdigest()[:8]}"

    def create(self) -> None:
        """Make the folder and take it for this process; rank 0 only.

        Raises:
            ConfigError: it cannot be made.
            LaunchError: another run is at work in it.
        """
        try:
            (self.path / "log").mkdir(parents=True, exist_ok=True)
            name = str((self.path / "lock").resolve())
            if name not in _HELD:
                _HELD[name] = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(_HELD[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LaunchError(
                f"another run is at work in {self.path}; wait for it, stop it, or choose another --run-dir"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"cannot make the run directory {self.path}: {error.strerror}; choose another --run-dir"
            ) from None

    def load_split(self, key: str) -> dict[str, Any] | None:
        """The cuts chosen at the first start with this key, or None."""
        return self._splits().get(key)

    def save_split(self, key: str, chosen: dict[str, Any]) -> None:
        """Keep the cuts for later starts."""
        write_text(self.split, json.dumps({**self._splits(), key: chosen}) + "\n")

    def _splits(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.split.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def note_start(self, config_toml: str, facts: dict[str, Any]) -> None:
        """Write config.toml and add this start to provenance.json."""
        write_text(self.config, config_toml)
        path = self.path / "provenance.json"
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
        except (OSError, ValueError, KeyError, TypeError):
            starts = []
        packages = ("torch", "torchvision", "numpy", "h5py", "mpi4py")
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "argv": sys.argv,
            "hpcsplit": __version__,
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in packages},
            "slurm": {k: v for k, v in sorted(os.environ.items()) if k.startswith("SLURM_")},
            **facts,
        }
        write_text(path, json.dumps({"starts": [*starts, start]}, indent=1) + "\n")
