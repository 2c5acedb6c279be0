"""The page of one run or several: everything in one file, which asks no network for anything and runs no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from hpcsplit import __version__
from hpcsplit.config import Config, option_tree
from hpcsplit.config.option import show
from hpcsplit.host.printable import printable
from hpcsplit.report.charts import SECTIONS
from hpcsplit.report.examples import Mistakes, Reconstructions, address
from hpcsplit.report.figure import drawn
from hpcsplit.report.summary import EXPLAINED, columns, csv_text, overview
from hpcsplit.report.times import run_parts
from hpcsplit.run.records import EpochRecord


@dataclass(frozen=True)
class Shown:
    """What the page shows of a run; a text stands for what is not there, and says why."""

    folder: str
    records: Sequence[EpochRecord]
    config: Config | str
    starts: Sequence[Mapping[str, Any]]  # of provenance.json, oldest first
    summary: str  # the table that the run printed at its end, "" before that
    examples: Mistakes | Reconstructions | str  # what the network makes of the test set


def page(runs: Mapping[str, Shown]) -> str:
    """The whole HTML text, by the names of the runs."""
    records = {name: run.records for name, run in runs.items()}
    seconds = {name: run_parts(each) for name, each in records.items()}
    parts = list(dict.fromkeys(part for each in seconds.values() for part in each))
    return rendered(
        "page.html.j2",
        runs=runs,
        title=f"hpcsplit: {', '.join(runs)}",
        version=__version__,
        columns=columns(records),
        overview=overview(records),
        explained=EXPLAINED,
        sections=SECTIONS,
        drawn=partial(drawn, runs=records),
        settings=_settings({name: run.config for name, run in runs.items() if isinstance(run.config, Config)}),
        facts=_facts,
        csv=csv_text(records),
        parts=parts,
        seconds=[
            (name, *(f"{each[part]:.1f}" if part in each else "-" for part in parts), f"{sum(each.values()):.1f}")
            for name, each in seconds.items()
        ],
    )


def rendered(template: str, **values: Any) -> str:
    """A template of this folder; text becomes no markup, and what a terminal would not show is spelled."""
    environment = Environment(
        loader=PackageLoader("hpcsplit.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(str(value)),
    )
    environment.filters |= {"address": address, "base64": lambda text: base64.b64encode(text.encode()).decode()}
    return environment.get_template(template).render(values)


def _settings(configs: Mapping[str, Config]) -> dict[str, Sequence[Any]]:
    """Every key with its values; names, keys that somebody has set, and keys that differ between the runs."""
    values: list[dict[str, str]] = []
    defaults: dict[str, str] = {}
    for config in configs.values():
        tree = config.as_dict()
        values.append({f"{part}.{key}": show(value) for part, keys in tree.items() for key, value in keys.items()})
        for part, options in option_tree(config.method.name).items():
            defaults |= {f"{part}.{key}": show(option.default) for key, option in options.items()}
    rows = [(key, *(own.get(key, "-") for own in values)) for key in defaults]
    chosen = [row for row in rows if row[0].endswith(".name") or set(row[1:]) != {defaults[row[0]]}]
    return {"columns": ("key", *configs), "all": rows, "chosen": chosen}


def _facts(start: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What provenance.json says of a start, without the configuration, which has a section of its own."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in start.items()
        if key != "config"
    ]
