"""The experiment as Markdown and JSON: our rows beside the paper's, whether its claims hold, and what differs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from scipy.special import stdtrit

from hpcsplit.config.option import show
from hpcsplit.run.provenance import processor
from tools.experiments.declaring import Claim, Row, ScaleName, Settings
from tools.experiments.measuring import MEASURES, Results, best_rival
from tools.experiments.running import Failure

ENOUGH = 8  # seeds from which on a difference under one percent point is claimed
TIMED = ("seconds", "epoch_seconds", "speedup", "limit_share", "lead_in_time")  # measures


# ------------------------------------------------------------------------------------------------ claims


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim; the interval is None with fewer than two values."""

    claim: Claim
    answer: str  # "holds" | "does not hold" | "not decided"
    mean: float
    interval: tuple[float, float] | None
    n: int
    counted: bool = False

    def sentence(self) -> str:
        name = "mean" if not self.claim.rival else "difference in %" if self.claim.relative else "difference"
        spread = "no interval" if self.interval is None else "95 % [{:.4g}, {:.4g}]".format(*self.interval)
        note = "; times counted, not measured" if self.counted else ""
        return f"{self.claim.text}: **{self.answer}** (n = {self.n}, {name} {self.mean:.4g}, {spread}{note})"


def judge(claim: Claim, results: Results) -> Verdict | None:
    """The verdict, or None where a row of the claim has no finished run."""
    rows = [results.experiment.row(key) for key in (claim.row, claim.rival) if key]
    own, *others = [results.values(row, claim.measure) for row in rows]
    values = list(own.values())
    for rival in others:
        both = [(own[seed], rival[seed]) for seed in sorted(set(own) & set(rival))]
        values = [(100 / its if claim.relative else 1.0) * (ours - its) for ours, its in both]
    if not values:
        return None
    said, timed = answer(values, claim, points=MEASURES[claim.measure].points), claim.measure in TIMED
    counted = timed and any(map(results.counted, rows))
    return Verdict(claim, said, statistics.mean(values), interval(values), len(values), counted)


def answer(values: Sequence[float], claim: Claim, *, points: bool) -> str:
    """A claim holds where the whole interval lies between its bounds, and fails where all of it lies beyond one."""
    limits = interval(values)
    bounds = [bound for bound in (claim.above, claim.below) if bound is not None]
    close = min(abs(statistics.mean(values) - bound) for bound in bounds) < 1
    if limits is None or (points and close and len(bounds) == 1 and len(values) < ENOUGH):
        return "not decided"
    low, high = limits
    above, below = (-inf if claim.above is None else claim.above), (inf if claim.below is None else claim.below)
    if above < low and high < below:
        return "holds"
    return "does not hold" if high < above or low > below else "not decided"


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t interval of the mean."""
    n = len(values)
    if n < 2:
        return None
    mean, half = statistics.mean(values), stdtrit(n - 1, 0.975) * statistics.stdev(values) / n**0.5
    return float(mean - half), float(mean + half)


# ------------------------------------------------------------------------------------------------ the table


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
        command = f"tools/reproduce {e.name} --scale {self.scale}"
        parts = [f"# {self.title}", f"{e.source}; `{command}`.", f"The paper: {e.says}"]
        for group in dict.fromkeys(row.group for row in self.rows):
            parts += [f"## {group}"] if group else []
            parts += [self._table([row for row in self.rows if row.group == group])]
        parts += [self._legend()]
        missing = [str(failure) for failure in self.failures]
        missing += [f"{row.key}: needs more than {self.cores} cores" for row in self.left_out]
        for heading, sentences in (
            ("Claims", [verdict.sentence() for verdict in self.verdicts()]),
            ("What differs from the paper", self._differences()),
            ("Not in the table", missing),
        ):
            parts += [f"## {heading}", "\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The same as plain values; measures by seed."""
        r = self.results
        return {
            "experiment": r.experiment.name,
            "source": r.experiment.source,
            "scale": self.scale,
            "rows": [
                {name: getattr(row, name) for name in ("key", "label", "group", "stages", "paper")}
                | {"counted": r.counted(row), "epochs": self._epochs(row)}
                | {"measures": {name: {str(s): v for s, v in r.values(row, name).items()} for name in MEASURES}}
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
        lines += [["---", *["---:"] * (len(lines[0]) - 2), "---"]]
        for row in rows:
            stages = f"{row.stages}{'*' if self.results.counted(row) else ''}"
            cells = [self._cell(row, name) for name in columns]
            lines += [[row.label, stages, self._epochs(row), *cells, row.paper or "-"]]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _cell(self, row: Row, name: str) -> str:
        """Mean ± standard deviation (n), or median (n)."""
        measure, values = MEASURES[name], list(self.results.values(row, name).values())
        if not values:
            return "-"
        middle = statistics.median(values) if measure.median else statistics.mean(values)
        spread = f" ± {statistics.stdev(values):{measure.form}}" if len(values) > 1 and not measure.median else ""
        who = best_rival(self.results, row)[0] if name == "exact_in_time" else ""
        return f"{middle:{measure.form}}{spread} ({len(values)})" + (f" ({who})" if who else "")

    def _epochs(self, row: Row) -> str:
        found = {len(run.records) for copies in self.results.of(row.key).values() for run in copies}
        return ", ".join(map(str, sorted(found))) or "-"

    def _legend(self) -> str:
        e = self.results.experiment
        legend = ["mean ± sample standard deviation (n runs), times and speed-ups: median (n)."]
        if "exact_in_time" in e.columns:
            stopped = "stopped at the method's training and refresh time"
            legend += [f"Best exact: the best exact row on no more ranks, {stopped}."]
        if "limit" in e.columns:
            legend += ["Limit: as many independent one-rank runs at once, over one alone."]
        if any(self.results.counted(row) for row in self.rows):
            counted = "times are counted, the slowest stage's own without messages and waiting, a lower bound"
            times = "no times" if e.timed else counted
            legend += [f"*: more stages than cores, all in turn on one core; {times}."]
        return " ".join(legend)

    def _differences(self) -> list[str]:
        e, changed = self.results.experiment, self._changed()
        shown = {row.group for row in self.rows}
        here = {row.key for row in [*self.rows, *self.left_out]}
        missing = [group for group in dict.fromkeys(row.group for row in e.rows) if group not in shown]
        missing += [row.key for row in e.rows if row.group in shown and row.key not in here]
        ranks = [rank for start in self._starts() for rank in start["ranks"]]
        cpus = dict.fromkeys(rank.get("cpu", "a processor that was not noted") for rank in ranks) or [processor()]
        found = [f"hardware: {e.hardware}; here {self.cores} x {' and '.join(cpus)}, one thread a rank"]
        found += [f"versions: {', '.join(self._versions())}"]
        if e.timed:  # with the days: one machine is not equally fast on every one
            days = " and ".join(sorted({start["time"].partition("T")[0] for start in self._starts(e.times)}))
            found += [f"times are of seeds 0 to {e.timed - 1}, whose runs had the machine to themselves, on {days}"]
        elif not e.in_turn:
            found += ["several runs share the machine while they are timed"]
        found += [f"scale: {', '.join(f'{k} = {show(v)}' for k, v in changed.items())}"] if changed else []
        found += [f"not run: {', '.join(missing)}"] if missing else []
        return [*found, *e.notes]

    def _changed(self) -> Settings:
        return {**self.results.experiment.scale(self.scale).settings, **self.extra}

    def _versions(self) -> Iterable[str]:
        """Of every start that is in the table."""
        starts = self._starts()
        torch = [f"torch {start['packages']['torch']}" for start in starts]
        mpi = [" ".join(start["mpi"].splitlines()[0].split()) for start in starts if start.get("mpi", "none") != "none"]
        return dict.fromkeys([*torch, *mpi, *(f"python {start['python']}" for start in starts)])

    def _starts(self, counts: Callable[[int], bool] = lambda seed: True) -> list[Mapping[str, Any]]:
        """How the runs of these seeds began."""
        by_seed = [item for runs in self.results.runs.values() for item in runs.items()]
        runs = [run for seed, copies in by_seed if counts(seed) for run in copies]
        return [run.provenance for run in runs if run.provenance]
