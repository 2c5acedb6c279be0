"""`hpcsplit.Run`: a run directory for a program or a notebook."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hpcsplit.commands.saved import opened
from hpcsplit.errors import ConfigError, DataError
from hpcsplit.files import checkpoints as ckpt
from hpcsplit.host.factory import given
from hpcsplit.report.charts import SECTIONS
from hpcsplit.report.summary import numbers_of
from hpcsplit.run import provenance
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import EpochRecord, Records, flat

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Run:
    """A run that has been trained, or is being trained: what it has recorded, and its network.

    Looking at it runs no code of the folder, reads no data, and changes nothing.

    >>> run = Run(folder / "run")
    >>> [record.epoch for record in run.records]  # from 0, as in records.jsonl
    [0]
    >>> sorted(run.config)[:3], run.config["optim"]["lr"]
    (['checkpoint', 'data', 'method'], 0.05)
    >>> run.checkpoints
    ['epoch-0001-step-000000']
    >>> net = run.load_model()
    >>> net(torch.zeros(5, 1, 32, 32)).shape
    torch.Size([5, 10])
    >>> run.figure("accuracy").savefig(folder / "accuracy.png")

    Args:
        path: the run directory.
        model: the network or function of a run whose network is the user's own code.

    Raises:
        ConfigError: it is no run directory.
    """

    def __init__(self, path: str | os.PathLike[str], *, model: nn.Module | Callable[..., nn.Module] | None = None):
        self.path = Path(path)
        self._folder, self._model = RunDir(self.path), model
        if not self._folder.config.is_file():
            raise ConfigError(f"{self.path} is no run directory: it has no config.toml; give the folder of a run")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def records(self) -> list[EpochRecord]:
        """One for each finished epoch, as it is now.  DataError where the file is damaged."""
        return Records(self._folder.records).load()

    @property
    def frame(self) -> DataFrame:
        """The records as a pandas DataFrame with a row for each epoch; epochs count from 1 there, values of a stage are
        in columns such as stage0.violation.  ConfigError where pandas is not installed."""
        if find_spec("pandas") is None:
            raise ConfigError("run.frame needs the package pandas: pip install pandas, or take run.records")
        import pandas

        return pandas.DataFrame([flat(record) for record in self.records])

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The resolved configuration, by section and key."""
        return self._folder.load_config().as_dict()

    @property
    def summary(self) -> dict[str, Any]:
        """What the closing table says, as numbers: see report/summary.py, `numbers_of`; and whether the run is done."""
        starts, expected = provenance.starts(self._folder.provenance), self._folder.load_forecast() or {}
        done = bool(starts) and starts[-1].get("end") == "done"
        return {"done": done, **numbers_of(self.records, expected.get("one_rank_samples_per_s"))}

    @property
    def checkpoints(self) -> list[str]:
        """The names of the complete ones, newest first."""
        return [folder.name for folder in ckpt.complete(self._folder.checkpoints)]

    def load_model(
        self,
        checkpoint: str | int = "latest",
        *,
        config: str | os.PathLike[str] | None = None,
        model: nn.Module | Callable[..., nn.Module] | None = None,
    ) -> nn.Sequential:
        """The network with the weights of a checkpoint, in evaluation mode, on the CPU.

        Its inputs are (B, *shape) float32, normalised with the mean and deviation of the training set; what these are
        stands in the files that `export` writes.

        Args:
            checkpoint: "latest", "best", a number N (after N epochs), or a name.
            config: the run's own CONFIG.toml, where its network is "package.module:factory".
            model: the network itself or the function that makes it, in place of that.

        Raises:
            CheckpointError: there is none of that name, or it is damaged.
            ConfigError: the network is the user's own code, which is not taken from a run directory's word.
        """
        made, name = model or self._model, self.config["model"]["name"]
        if made is None and config is None and ":" in name:
            raise ConfigError(
                f'{self.path} has model.name = "{name}", code that is not run on the word of a run directory; give '
                "model=, the network or the function that makes it, or config=, the run's own file"
            )
        if made is None or ":" not in name:
            return self._load(str(checkpoint), config)
        from hpcsplit.commands.library import factory_of

        with given(name, factory_of(made)):
            return self._load(str(checkpoint), config)

    def _load(self, checkpoint: str, config: str | os.PathLike[str] | None) -> nn.Sequential:
        saved = opened(self._folder, checkpoint, Path(config) if config else None)
        saved.check("", "model")
        return saved.network(saved.weights())

    def figure(self, name: str = "accuracy") -> Figure:
        """A figure of the report by its heading, or how that begins: "loss", "accuracy", "violation", "speed" …

        Raises:
            ConfigError: there is none.
            DataError: no epoch has recorded what it shows.
        """
        from hpcsplit.report.picture import figure_of_charts

        charts = {chart.heading.lower(): chart for section in SECTIONS.values() for chart in section}
        key = name.lower()
        chart = charts.get(key) or next((each for heading, each in charts.items() if heading.startswith(key)), None)
        if chart is None:
            raise ConfigError(f"there is no figure {name!r}; it is one of {', '.join(charts)}")
        runs = {self.path.name: self.records}
        if not chart.panels(runs):
            raise DataError(f"{self.path}: {chart.absent}")
        return figure_of_charts(runs, [chart], self.path.name)
