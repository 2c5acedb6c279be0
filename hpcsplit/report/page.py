"""The page of one run or several: everything in one file, which asks no network for anything and runs no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcsplit import __version__
from hpcsplit.config import Config, option_tree
from hpcsplit.config.option import show
from hpcsplit.report.charts import SECTIONS, Chart
from hpcsplit.report.curves import Runs
from hpcsplit.report.markup import Markup, bullets, element, joined, table
from hpcsplit.report.mistakes import Mistakes
from hpcsplit.report.mistakes import shown as mistakes_shown
from hpcsplit.report.numbers import COLUMNS, EXPLAINED, csv_text, overview
from hpcsplit.report.reconstructions import Reconstructions
from hpcsplit.report.reconstructions import shown as reconstructions_shown
from hpcsplit.report.style import STYLE
from hpcsplit.report.svg import drawn
from hpcsplit.report.times import run_parts
from hpcsplit.run.records import EpochRecord

MISTAKES, SETTINGS, ORIGIN, NUMBERS = "On the test set", "Configuration", "Provenance", "Numbers"


@dataclass(frozen=True)
class Run:
    """What the page shows of a run; a text stands for what is not there, and says why.

    Attributes:
        starts: of provenance.json, oldest first.
        summary: the table that the run printed at its end, "" before that.
    """

    folder: str
    records: Sequence[EpochRecord]
    config: Config | str
    starts: Sequence[Mapping[str, Any]]
    summary: str
    mistakes: Mistakes | Reconstructions | str


def page(runs: Mapping[str, Run]) -> str:
    """The whole HTML text, by the names of the runs."""
    records = {name: run.records for name, run in runs.items()}
    parts = {"Overview": _overview(runs, records)}
    parts |= {heading: joined(_figure(chart, records) for chart in charts) for heading, charts in SECTIONS.items()}
    parts |= {
        MISTAKES: joined(_of_run(name, runs, _mistakes(run)) for name, run in runs.items()),
        SETTINGS: _settings(runs),
        ORIGIN: joined(_of_run(name, runs, _provenance(run)) for name, run in runs.items()),
        NUMBERS: _numbers(records),
    }
    title = f"hpcsplit: {', '.join(runs)}"
    links = bullets(element("a", heading, href=f"#{_anchor(heading)}") for heading in parts)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
        element("link", rel="icon", href="data:,"),
    )
    body = element(
        "body",
        element("h1", title),
        element("nav", links, aria_label="contents"),
        *(element("section", element("h2", heading), part, id=_anchor(heading)) for heading, part in parts.items()),
        element("p", f"Written by hpcsplit {__version__}. Epochs count from 1.", class_="note"),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _of_run(name: str, runs: Mapping[str, Run], content: Markup) -> Markup:
    """A part that every run has one of."""
    return joined([element("h3", name), content]) if len(runs) > 1 else content


def _absent(sentence: str) -> Markup:
    return element("p", sentence, class_="absent")


# ------------------------------------------------------------------------------------------------ sections


def _overview(runs: Mapping[str, Run], records: Runs) -> Markup:
    parts = [table(COLUMNS, overview(records)), element("p", f"{EXPLAINED}.", class_="note")]
    for name, run in runs.items():
        said = element("pre", run.summary) if run.summary else _absent("The run has not printed its closing table yet.")
        parts.append(element("details", element("summary", f"What {name} printed at its end"), said))
    return joined(parts)


def _figure(chart: Chart, records: Runs) -> Markup:
    """The panels, one legend and the caption; a sentence where there is nothing to draw."""
    panels, legend = drawn(chart, records)
    if not panels:
        return joined([element("h3", chart.heading), _absent(chart.absent)])
    caption = element("figcaption", chart.caption)
    figure = element("figure", element("div", *panels, class_="panels"), legend, caption)
    return joined([element("h3", chart.heading), figure])


def _mistakes(run: Run) -> Markup:
    found = run.mistakes
    if isinstance(found, str):
        return _absent(found)
    return mistakes_shown(found) if isinstance(found, Mistakes) else reconstructions_shown(found)


def _settings(runs: Mapping[str, Run]) -> Markup:
    """Names, keys that somebody has set, and keys that differ between the runs; below them all."""
    known = {name: run.config.as_dict() for name, run in runs.items() if isinstance(run.config, Config)}
    missing = [_absent(f"{name}: {run.config}") for name, run in runs.items() if isinstance(run.config, str)]
    values = {
        name: {f"{section}.{key}": show(value) for section, keys in tree.items() for key, value in keys.items()}
        for name, tree in known.items()
    }
    defaults = {
        f"{section}.{key}": show(option.default)
        for tree in known.values()
        for section, keys in option_tree(tree["method"]["name"]).items()
        for key, option in keys.items()
    }
    rows = [(key, *(own.get(key, "-") for own in values.values())) for key in defaults]
    chosen = [row for row in rows if row[0].endswith(".name") or set(row[1:]) != {defaults[row[0]]}]
    parts = [*missing]
    if known:
        columns = ("key", *known)
        parts += [
            table(columns, chosen, words=True),
            element("details", element("summary", "all keys"), table(columns, rows, words=True)),
        ]
    return joined(parts)


def _provenance(run: Run) -> Markup:
    where = element("p", f"Run directory {run.folder}")
    if not run.starts:
        return joined(
            [where, _absent("There is no provenance.json that could be read: nothing is known of its starts.")]
        )
    *earlier, newest = run.starts
    rows = [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in newest.items()
    ]
    rows = [row for row in rows if row[0] != "config"]  # has a section of its own
    before = [f"start {start.get('start')}: {start.get('time')}, {start.get('end')}" for start in earlier]
    facts = table((f"start {len(run.starts)}", ""), rows, words=True)
    summary = element("summary", f"start {len(run.starts)}: {newest.get('time')} to {newest.get('end_time', 'now')}")
    return joined([where, bullets(before), element("details", summary, facts)])


def _numbers(records: Runs) -> Markup:
    """The CSV as a link to be saved, and where all seconds went."""
    text = csv_text(records)
    address = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
    link = element("a", f"all numbers as CSV ({len(text):,} bytes)", href=address, download="hpcsplit.csv")
    parts = {name: run_parts(found) for name, found in records.items()}
    columns = list(dict.fromkeys(part for found in parts.values() for part in found))
    rows = [
        (name, *(f"{found[part]:.1f}" if part in found else "-" for part in columns), f"{sum(found.values()):.1f}")
        for name, found in parts.items()
    ]
    caption = "Seconds of each run by part; those within training are means over the stages."
    return joined([element("p", link), element("p", caption), table(("run", *columns, "all"), rows)])
