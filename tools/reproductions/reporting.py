"""The experiment as Markdown and JSON: our rows beside the paper's, its claims, and what differs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpcsplit.config.option import show
from hpcsplit.run.provenance import processor
from tools.reproductions.declaring import Row, ScaleName, Settings
from tools.reproductions.judging import Verdict, judge
from tools.reproductions.measuring import MEASURES, Results, Values
from tools.reproductions.running import Failure


@dataclass(frozen=True)
class Report:
    """Everything that is said of one experiment at one scale."""

    results: Results
    scale: ScaleName
    rows: Sequence[Row]
    extra: Settings
    failures: Sequence[Failure]
    left_out: Sequence[Row]
    cores: int

    @property
    def title(self) -> str:
        """The experiment's, with the network that stands in for the paper's."""
        network = self._changed().get("model.name")
        return self.results.experiment.title + (f" (here: {network})" if network else "")

    def verdicts(self) -> list[Verdict]:
        shown = {row.key for row in self.rows}
        claims = [c for c in self.results.experiment.claims if {c.row, c.rival or c.row} <= shown]
        return [verdict for claim in claims if (verdict := judge(claim, self.results))]

    def markdown(self) -> str:
        e = self.results.experiment
        parts = [
            f"# {self.title}",
            f"{e.source}; `tools/reproduce {e.name} --scale {self.scale}`.",
            f"The paper: {e.says}",
        ]
        for group in dict.fromkeys(row.group for row in self.rows):
            parts += [f"## {group}"] if group else []
            parts += [self._table([row for row in self.rows if row.group == group])]
        parts += [self._legend()]
        if verdicts := self.verdicts():
            parts += ["## Claims", _bullets(verdict.sentence() for verdict in verdicts)]
        parts += ["## What differs from the paper", _bullets(self._differences())]
        missing = [str(failure) for failure in self.failures]
        missing += [f"{row.key}: needs more than {self.cores} cores" for row in self.left_out]
        parts += ["## Not in the table", _bullets(missing)] if missing else []
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The same as plain values; measures by seed."""
        r = self.results
        return {
            "experiment": r.experiment.name,
            "source": r.experiment.source,
            "scale": self.scale,
            "rows": [
                {
                    "key": row.key,
                    "label": row.label,
                    "group": row.group,
                    "stages": row.stages,
                    "counted": r.counted(row),
                    "epochs": self._epochs(row),
                    "paper": row.paper,
                    "measures": {name: {str(s): v for s, v in r.values(row, name).items()} for name in MEASURES},
                }
                for row in self.rows
            ],
            "claims": [asdict(verdict) for verdict in self.verdicts()],
            "differs": self._differences(),
            "failed": [{"run": f.task.name, "exit": f.exit_code, "said": f.sentence} for f in self.failures],
            "left_out": [row.key for row in self.left_out],
        }

    def _table(self, rows: Sequence[Row]) -> str:
        columns = self.results.experiment.columns
        lines = [["row", "stages", "epochs", *(MEASURES[name].heading for name in columns), "paper"]]
        for row in rows:
            cells = [self._cell(row, name) for name in columns]
            stages = f"{row.stages}{'*' if self.results.counted(row) else ''}"
            lines.append([row.label, stages, self._epochs(row), *cells, row.paper or "-"])
        rule = ["---", *["---:"] * (len(lines[0]) - 2), "---"]
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))

    def _cell(self, row: Row, name: str) -> str:
        measure, values = MEASURES[name], self.results.values(row, name)
        who = measure.who(self.results, row)
        return written(values, measure.form, median=measure.median) + (f" ({who})" if who and values else "")

    def _epochs(self, row: Row) -> str:
        found = {len(run.records) for copies in self.results.of(row.key).values() for run in copies}
        return ", ".join(map(str, sorted(found))) or "-"

    def _legend(self) -> str:
        legend = "mean ± sample standard deviation (n runs), times and speed-ups: median (n). "
        if "exact_in_time" in self.results.experiment.columns:
            legend += (
                "Best exact: the best exact row on no more ranks, stopped at the method's training and refresh time. "
            )
        if "limit" in self.results.experiment.columns:
            legend += "Limit: as many independent one-rank runs at once, over one alone. "
        if any(self.results.counted(row) for row in self.rows):
            counted = "times are counted, the slowest stage's own without messages and waiting, a lower bound"
            times = "no times" if self.results.experiment.timed else counted
            legend += f"*: more stages than cores, all in turn on one core; {times}. "
        return legend.strip()

    def _differences(self) -> list[str]:
        e, changed = self.results.experiment, self._changed()
        shown = {row.group for row in self.rows}
        missing = [group for group in dict.fromkeys(row.group for row in e.rows) if group not in shown]
        here = {row.key for row in [*self.rows, *self.left_out]}
        missing += [row.key for row in e.rows if row.group in shown and row.key not in here]
        found = [f"hardware: {e.hardware}; here {self.cores} x {' and '.join(self._processors())}, one thread a rank"]
        found += [f"versions: {', '.join(self._versions())}"]
        if e.timed:
            days = " and ".join(self._days())
            found += [f"times are of seeds 0 to {e.timed - 1}, whose runs had the machine to themselves, on {days}"]
        elif not e.in_turn:
            found += ["several runs share the machine while they are timed"]
        found += [f"scale: {', '.join(f'{k} = {show(v)}' for k, v in changed.items())}"] if changed else []
        found += [f"not run: {', '.join(missing)}"] if missing else []
        return [*found, *e.notes]

    def _changed(self) -> Settings:
        return {**self.results.experiment.scale(self.scale).settings, **self.extra}

    def _versions(self) -> list[str]:
        """Of every start that is in the table."""
        starts = self._starts()
        found = {f"torch {start['packages']['torch']}": None for start in starts}
        found |= {
            " ".join(start["mpi"].splitlines()[0].split()): None
            for start in starts
            if start.get("mpi", "none") != "none"
        }
        return [*found, *{f"python {start['python']}": None for start in starts}]

    def _processors(self) -> list[str]:
        ranks = [rank for start in self._starts() for rank in start["ranks"]]
        return list(dict.fromkeys(rank.get("cpu", "a processor that was not noted") for rank in ranks)) or [processor()]

    def _days(self) -> list[str]:
        """When the runs began whose times count: one machine is not equally fast every day."""
        return sorted({start["time"].partition("T")[0] for start in self._starts(self.results.experiment.times)})

    def _starts(self, counts: Callable[[int], bool] = lambda seed: True) -> list[Mapping[str, Any]]:
        """How the runs of these seeds began."""
        by_seed = [item for runs in self.results.runs.values() for item in runs.items()]
        runs = [run for seed, copies in by_seed if counts(seed) for run in copies]
        return [run.provenance for run in runs if run.provenance]


def written(values: Values, form: str, *, median: bool = False) -> str:
    """Mean ± standard deviation (n), or median (n)."""
    if not values:
        return "-"
    known = list(values.values())
    if median:
        return f"{statistics.median(known):{form}} ({len(known)})"
    spread = f" ± {statistics.stdev(known):{form}}" if len(known) > 1 else ""
    return f"{statistics.mean(known):{form}}{spread} ({len(known)})"


def _bullets(sentences: Any) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
