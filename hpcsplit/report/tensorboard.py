"""The records of a run as scalars for TensorBoard: an extra, imported by nobody who has not asked for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from hpcsplit.errors import ConfigError
from hpcsplit.files.nofollow import names, remove
from hpcsplit.run.records import EpochRecord, flat


def check_installed() -> None:
    """Raise ConfigError where run.tensorboard = true cannot be done."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "run.tensorboard = true, but the package tensorboard is not installed here: "
            "pip install 'hpcsplit[tensorboard]', or leave the key out"
        )


class Board:
    """The folder that TensorBoard looks at; epochs are its steps and count from 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, past: Sequence[EpochRecord]) -> None:
        """Write the epochs so far, in place of what earlier starts have written: no epoch is there twice."""
        from torch.utils.tensorboard import SummaryWriter

        for name in names(self.folder):
            if name.startswith("events.out.tfevents."):
                remove(self.folder / name)
        self._writer = SummaryWriter(str(self.folder))
        for record in past:
            self.add(record)

    def add(self, record: EpochRecord) -> None:
        """One finished epoch, on the disk when this returns."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record.epoch + 1)
        self._writer.flush()


def scalars(record: EpochRecord) -> Iterator[tuple[str, float]]:
    """Every number of a record that is there, with stages and parts of the objective in groups of their own."""
    for name, value in flat(record).items():
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool):
            place, _, key = name.partition(".")
            yield f"{key}/{place}" if place.startswith("stage") else f"{place}/{key}" if key else f"epoch/{name}", value
