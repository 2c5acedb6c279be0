"""What an experiment is made of, and how it is read from the tables in this folder.  Nothing here runs.

A table of tssm.toml, pdadmm.toml, sph.toml or plane.toml is an experiment: `base`, the settings that all its rows have,
`rows`, `claims`, and how much of it the scales `small`, `paper` and, some, `converged` (a small network for the paper's
epochs) run.  Its keys are the attributes of the classes below; those of a section of the configuration (`method.beta`)
are settings.  A row may be written [key, label, like, {the rest}], a claim [text, like, row, rival, {the rest}], short
of what is not there.

    like = "A B"            takes what the tables A and B of [parts] say; what stands beside it goes before, but notes
                            come behind theirs.
    each = {a = […], b = …} one row (claim) for every pair of an a and a b.  A member that is a plain value is written
                            {a} in the texts; one that is a table brings words and settings of its own, before those of
                            `like`.  A text names a list of [parts]; a table stands for the rows with these attributes.
    of = […]                rows (claims) that have all that stands beside it, for every pair of `each`.
    cells = […]             what the paper has for the first rows, in their order.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from hpcsplit.config import Config

Settings = Mapping[str, Any]  # "section.key" -> value, as on the command line of `hpcsplit train`
ScaleName = Literal["small", "converged", "paper"]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)
SECTIONS = [each.name for each in dataclasses.fields(Config)]


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
    cuts: Mapping[str, Sequence[int]] = field(default_factory=dict)


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
class Experiment:
    """One table or figure of a paper.

    Attributes:
        source: where it stands; `says`: the paper's claim and numbers; `hardware`: the paper's.
        config: the file in jobs/, without .toml, with the settings that it shares with others.
        base: what every row has over those of the file.
        columns: measures (see measuring.MEASURES) in the table.
        curves: its picture: quantities (see measuring.CURVES) over the epochs, a panel for each group and quantity.
        against: or the speed-up over the groups, which are numbers, with what they count.
        plane: or a measure over the training time, the exact rows on so many ranks joined by lines.
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
    converged: Scale | None = None
    base: Settings = field(default_factory=dict)
    curves: tuple[str, ...] = ("train_accuracy",)
    against: str = ""
    plane: str = ""
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

    @property
    def scales(self) -> tuple[ScaleName, ...]:
        return tuple(name for name in SCALES if getattr(self, name))

    def scale(self, name: ScaleName) -> Scale:
        """One of `scales`."""
        found: Scale = getattr(self, name)
        return found

    def rows_at(self, name: ScaleName) -> tuple[Row, ...]:
        """The rows that this scale runs."""
        groups = self.scale(name).groups
        return tuple(row for row in self.rows if not groups or row.group in groups)

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)


# ------------------------------------------------------------------------------------------------ reading

LINES = {Row: ("key", "label", "like"), Claim: ("text", "like", "row", "rival")}
Table = dict[str, Any]


def experiment_of(name: str, table: Table, parts: Table) -> Experiment:
    """An experiment as its table declares it.

    Raises:
        ValueError: it has more cells than rows.
    """
    notes = [*_like(table, parts).get("notes", []), *table.get("notes", [])]
    table = _whole(table, parts) | {"notes": notes}
    rows = list(_each(Row, table["rows"], parts, (), {}, {}))
    cells = table.pop("cells", [])
    if len(cells) > len(rows):
        raise ValueError(f"{name}: {len(cells)} cells for {len(rows)} rows; leave out the last ones")
    rows[: len(cells)] = [dataclasses.replace(row, paper=cell) for row, cell in zip(rows, cells, strict=False)]
    table |= {"rows": rows, "claims": [*_each(Claim, table["claims"], parts, rows, {}, {})]}
    table["base"] = _flat(_whole(table.get("base", {}), parts))
    scales = {"small": {}, "paper": {}} | {scale: table[scale] for scale in SCALES if scale in table}
    table |= {scale: _made(Scale, _whole(those, parts)) for scale, those in scales.items()}
    experiment: Experiment = _made(Experiment, {"name": name, **table})
    return experiment


def _each(
    kind: type, lines: Sequence[Any], parts: Table, rows: Sequence[Row], around: Table, words: Table
) -> Iterator[Any]:
    """The rows or claims of these lines, which have all that is `around` them."""
    for line in lines:
        if isinstance(line, list):
            *plain, rest = line if isinstance(line[-1], dict) else [*line, {}]
            line = {**dict(zip(LINES[kind], plain, strict=False)), **rest}
        outer = _merged(around, _like(line, parts))
        whole = _merged(outer, line)
        axes = {name: parts[axis] if isinstance(axis, str) else axis for name, axis in whole.pop("each", {}).items()}
        for members in product(*(_named(axis, rows) if isinstance(axis, dict) else axis for axis in axes.values())):
            tables = [
                _whole(m, parts) if isinstance(m, dict) else {name: m} for name, m in zip(axes, members, strict=True)
            ]
            brought = [{key: value for key, value in table.items() if isinstance(value, dict)} for table in tables]
            inner = {k: v for k, v in _merged(outer, *brought, line).items() if k not in ("each", "of", "like")}
            if "of" in whole:
                yield from _each(kind, whole["of"], parts, rows, inner, _merged(words, *tables))
            else:
                yield _made(kind, _filled(inner, _merged(words, *tables)))


def _named(attributes: Table, rows: Sequence[Row]) -> list[Table]:
    """The words of the rows that have these attributes."""
    found = [row for row in rows if attributes.items() <= vars(row).items()]
    return [{"key": row.key, "label": row.label} for row in found]


def _whole(table: Table, parts: Table) -> Table:
    """With what it is like."""
    return _merged(_like(table, parts), {key: value for key, value in table.items() if key != "like"})


def _like(table: Table, parts: Table) -> Table:
    return _merged(*(_whole(parts[name], parts) for name in table.get("like", "").split()))


def _merged(*tables: Mapping[str, Any]) -> Table:
    """The later ones go before; tables in them are merged, too."""
    found: Table = {}
    for table in tables:
        for key, value in table.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = _merged(found[key], value) if both else value
    return found


def _filled(value: Any, words: Mapping[str, Any]) -> Any:
    """With the words in place of their names; a text that is nothing but a name becomes the word itself."""
    if isinstance(value, dict):
        return {key: _filled(each, words) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, words) for each in value]
    if isinstance(value, str):
        return words[value[1:-1]] if value[1:-1] in words and value[0] == "{" else value.format_map(words)
    return value


def _flat(table: Table) -> Settings:
    """{section: {key: value}} as settings."""
    return {f"{section}.{key}": value for section, keys in table.items() for key, value in keys.items()}


def _made(kind: type, table: Table) -> Any:
    """An object with these attributes; sections are its settings, and a claim needs none of those it was given."""
    own = {key: value for key, value in table.items() if key not in SECTIONS}
    if kind is not Claim and len(own) < len(table):
        own["settings"] = _flat({key: value for key, value in table.items() if key in SECTIONS})
    turned = {"str": str, "tuple": tuple}
    kinds = {each.name: turned.get(str(each.type).partition("[")[0]) for each in dataclasses.fields(kind)}
    return kind(**{key: turn(value) if (turn := kinds.get(key)) else value for key, value in own.items()})


EXPERIMENTS: dict[str, Experiment] = {}
for _file in ("tssm", "pdadmm", "sph", "plane"):
    _tables = tomllib.loads((Path(__file__).parent / f"{_file}.toml").read_text(encoding="utf-8"))
    _parts = _tables.pop("parts")
    EXPERIMENTS |= {name: experiment_of(name, table, _parts) for name, table in _tables.items()}
