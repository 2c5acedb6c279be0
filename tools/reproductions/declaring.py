"""What an experiment is made of.  Nothing here runs: experiments.py declares, the other files read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Settings = Mapping[str, Any]  # "section.key" -> value, as on the command line of `hpcsplit train`
ScaleName = Literal["small", "paper"]


@dataclass(frozen=True)
class Row:
    """One line of the table: what is trained, and the paper's value beside it.

    Attributes:
        key: its name in folders, in claims and for --only.
        group: rows of one group are compared with each other: a data set, a width.
        exact: back-propagation, a rival that may be stopped at a method's time.
        copies: so many independent runs at once, one core each: what the machine can do at best.
        serial: the row with one rank that this row's speed-up is over; "" has no speed-up.
        limit: the row of copies that bounds this row's speed-up.
        share: of the scale's epochs, at least one.
        program: the module that trains it, with the command line of `hpcsplit train`.
        real: it runs as many processes as stages or not at all: it cannot take turns, or seconds decide what it does.
    """

    key: str
    label: str
    settings: Settings = field(default_factory=dict)
    stages: int = 1
    group: str = ""
    exact: bool = False
    copies: int = 1
    serial: str = ""
    limit: str = ""
    share: float = 1.0
    paper: str = ""
    program: str = "hpcsplit train"
    real: bool = False


@dataclass(frozen=True)
class Scale:
    """How much of it is run: settings over those of the rows, seeds 0 … n-1, the groups (all, if empty), and cuts by
    the number of stages where the network is another one than in the file."""

    settings: Settings = field(default_factory=dict)
    seeds: int = 1
    groups: tuple[str, ...] = ()
    cuts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A sentence whose direction the runs can check: a measure of a row, or its difference to a rival's.

    Attributes:
        rival: another row; the values are then differences of runs with the same seed, in percent of the rival's where
            `relative`.  "" takes the row's values themselves.
        above, below: the sentence holds where the mean lies between them.
    """

    text: str
    row: str
    measure: str
    rival: str = ""
    above: float | None = None
    below: float | None = None
    relative: bool = False


@dataclass(frozen=True)
class Curves:
    """A picture of quantities (see measuring.CURVES) over the epochs, one panel for each group and quantity."""

    quantities: tuple[str, ...] = ("train_accuracy",)


@dataclass(frozen=True)
class Against:
    """A picture of the speed-up over the groups, which are numbers, with what they count."""

    axis: str


@dataclass(frozen=True)
class Plane:
    """A picture of a measure over the training time, the exact rows on so many ranks joined by lines."""

    measure: str


@dataclass(frozen=True)
class Experiment:
    """One table or figure of a paper.

    Attributes:
        source: where it stands; `says`: the paper's claim and numbers; `hardware`: the paper's.
        config: the file in jobs/, without .toml, with the settings that it shares with others.
        base: what every row has over those of the file.
        columns: measures (see measuring.MEASURES) in the table.
        judged_by: the accuracy at which exact training stopped at the same time is compared.
        in_turn: one row at a time, all rows once before any again: for timings.
        timed: seeds 0 … n-1 have the machine to themselves, and their times count; 0: all count, whatever ran beside.
        notes: what differs from the paper at every scale.
    """

    name: str
    config: str
    title: str
    source: str
    says: str
    hardware: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    small: Scale
    paper: Scale
    columns: tuple[str, ...]
    base: Settings = field(default_factory=dict)
    picture: Curves | Against | Plane = field(default_factory=Curves)
    judged_by: str = "train_accuracy"
    in_turn: bool = False
    timed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"jobs/{self.config}.toml"

    def times(self, seed: int) -> bool:
        """Whether the times of runs with this seed count."""
        return not self.timed or seed < self.timed

    def scale(self, name: ScaleName) -> Scale:
        return self.small if name == "small" else self.paper

    def rows_at(self, name: ScaleName) -> tuple[Row, ...]:
        """The rows that this scale runs."""
        groups = self.scale(name).groups
        return tuple(row for row in self.rows if not groups or row.group in groups)

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)
