"""What the records of finished runs say: one number for each seed of a row, by the name of the measure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import inf
from operator import itemgetter
from statistics import mean, median
from typing import Any

from numpy import interp

from hpcsplit.run.records import EpochRecord
from tools.experiments.declaring import Experiment, Row

Values = Mapping[int, float]  # by seed
ABOUT = 1.02  # times as long is no longer


@dataclass(frozen=True)
class Run:
    """A finished run.  `counted`: its stages ran in turn on one core, so an epoch's time is that of its slowest stage
    alone, without messages and waiting, instead of a measured one."""

    records: Sequence[EpochRecord]
    counted: bool = False
    provenance: Mapping[str, Any] | None = None

    def epoch_seconds(self) -> list[float]:
        """Training of each epoch."""
        if self.counted:
            return [max(stage.compute_s or 0.0 for stage in record.stages) for record in self.records]
        return [record.train_s or 0.0 for record in self.records]

    def clock(self) -> list[float]:
        """Training and refresh up to the end of each epoch."""
        both = zip(self.epoch_seconds(), self.records, strict=True)
        return list(accumulate(seconds + (record.refresh_s or 0.0) for seconds, record in both))

    def series(self, quantity: str) -> list[float | None]:
        """One of CURVES in each epoch."""
        return [CURVES[quantity].of(record) for record in self.records]


@dataclass(frozen=True)
class Results:
    """The finished runs of an experiment: row key -> seed -> the run, or its copies that ran at once."""

    experiment: Experiment
    runs: Mapping[str, Mapping[int, Sequence[Run]]]

    def values(self, row: Row, measure: str) -> Values:
        """The measure of every seed that has one."""
        return MEASURES[measure].over(self, row)

    def scores(self, row: Row) -> Values:
        """What rows are compared by."""
        return self.values(row, self.experiment.judged_by)

    def seconds(self, row: Row) -> float | None:
        """The median over seeds, since seconds are the machine's; None where they are counted or not known."""
        times = {} if self.counted(row) else self.values(row, "seconds")
        return median(times.values()) if times else None

    def of(self, key: str) -> Mapping[int, Sequence[Run]]:
        return self.runs.get(key, {})

    def counted(self, row: Row) -> bool:
        timed = (copies for seed, copies in self.of(row.key).items() if self.experiment.times(seed))
        return any(run.counted for copies in timed for run in copies)

    def rivals(self, row: Row) -> list[Row]:
        """The exact rows on no more ranks."""
        known = [rival for rival in self.experiment.rows if rival.exact and not self.counted(rival)]
        return [rival for rival in known if rival.group == row.group and rival.stages <= row.stages]


@dataclass(frozen=True)
class Measure:
    """How a measure is found and written.

    Attributes:
        points: in percent points: a difference under 1 is only claimed from 8 seeds on.
        median: the seeds are summed up by their median, not by mean and standard deviation.
    """

    heading: str
    over: Callable[[Results, Row], Values]
    form: str = ".2f"
    points: bool = False
    median: bool = False


# ------------------------------------------------------------------------------------------------ over the epochs

Quantity = Callable[[EpochRecord], float | None]  # None in epochs that have none


@dataclass(frozen=True)
class Curve:
    """A quantity of each epoch."""

    heading: str
    of: Quantity
    log: bool = False


def _percent(key: str) -> Quantity:
    return lambda record: None if getattr(record, key) is None else 100 * getattr(record, key)


def _term(name: str) -> Quantity:
    """A term of the method's objective."""
    return lambda record: (record.terms or {}).get(name)


def _k_step_sq(record: EpochRecord) -> float | None:
    """k ‖step‖², k = 1, 2 …, of the variables and the weights: it goes to 0 where ‖step‖² is o(1/k)."""
    aux = _term("step_sq")(record)
    return None if aux is None else (record.epoch + 1) * (aux + (_term("weights_step_sq")(record) or 0.0))


def _residual(record: EpochRecord) -> float | None:
    squared = _term("residual_sq")(record)
    return None if squared is None else squared**0.5


def _violation(record: EpochRecord) -> float | None:
    return max(_known(stage.violation for stage in record.stages[1:]), default=None)


CURVES: dict[str, Curve] = {
    "train_accuracy": Curve("training accuracy (%)", _percent("train_accuracy")),
    "test_accuracy": Curve("test accuracy (%)", _percent("test_accuracy")),
    "test_accuracy_bn": Curve("test accuracy, BatchNorm re-estimated (%)", _percent("test_accuracy_bn")),
    "loss": Curve("training loss of the whole network", lambda record: record.loss, log=True),
    "test_loss": Curve("test loss", lambda record: record.test_loss, log=True),
    "violation": Curve("violation, worst boundary", _violation),
    "objective": Curve("augmented Lagrangian a sample", _term("objective"), log=True),
    "residual": Curve("residual a sample", _residual, log=True),
    "rate": Curve("k · squared step a sample", _k_step_sq, log=True),
}

# ------------------------------------------------------------------------------------------------ of one run


def _each(of: Callable[[Run], float | None], *, timed: bool = False) -> Callable[[Results, Row], Values]:
    """A measure of a single run; copies of one seed are averaged.

    Args:
        timed: only of seeds whose times count, and, where these had the machine to themselves, of no run in turns.
    """

    def over(results: Results, row: Row) -> Values:
        found = {}
        for seed, copies in results.of(row.key).items():
            shared = results.experiment.timed and any(run.counted for run in copies)
            if timed and (shared or not results.experiment.times(seed)):
                continue
            known = _known(map(of, copies))
            if len(known) == len(copies):
                found[seed] = mean(known)
        return found

    return over


def _last(quantity: str) -> Callable[[Results, Row], Values]:
    return _each(lambda run: run.series(quantity)[-1])


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _late(run: Run, of: Quantity) -> float | None:
    """Mean over the last quarter of the parallel epochs, without those that have none."""
    known = _known(_quarters([of(record) for record in run.records if record.phase == "parallel"])[1])
    return mean(known) if known else None


def _quarters(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The first and the last quarter, at least one value each."""
    size = max(1, len(values) // 4)
    return values[:size], values[-size:]


def _label_signal(run: Run) -> float | None:
    """The only stage of a network that is not split has the label itself."""
    return _late(run, lambda record: record.stages[0].label_signal) if len(run.records[-1].stages) > 1 else None


def _rises(run: Run) -> float | None:
    """Iterations after which the objective is larger than before, by more than its rounding in float32."""
    values = _known(run.series("objective"))
    return sum(b > a + 1e-6 * abs(a) for a, b in pairwise(values)) if values else None


def _residual_left(run: Run) -> float | None:
    values = _known(run.series("residual"))
    return values[-1] / max(values) if values and max(values) > 0 else None


def _rate(run: Run) -> float | None:
    values = _known(run.series("rate"))
    first, last = (median(quarter or [0.0]) for quarter in _quarters(values))
    return last / first if first > 0 else None


def _epoch_seconds(run: Run) -> float:
    """The first epoch warms up."""
    return median(run.epoch_seconds()[1:] or run.epoch_seconds())


# ------------------------------------------------------------------------------------------------ of several rows


def _at_time(exact: Run, seconds: float, quantity: str) -> float | None:
    """The accuracy after the last epoch that ends in time; None where the first one does not, or was not evaluated."""
    done = [value for value, end in zip(exact.series(quantity), exact.clock(), strict=True) if end <= seconds]
    return done[-1] if done else None


def best_rival(results: Results, row: Row) -> tuple[str, Values]:
    """Of the exact rows, stopped at this row's time: the label of the one with the best mean, its accuracy by seed."""
    if row.exact or results.counted(row):
        return "", {}
    e, own, found = results.experiment, results.of(row.key), list[tuple[str, Values]]()
    for rival in results.rivals(row):
        exact = results.of(rival.key)
        seeds = [seed for seed in own if seed in exact and e.times(seed)]
        values = {seed: _at_time(exact[seed][0], own[seed][0].clock()[-1], e.judged_by) for seed in seeds}
        found.append((rival.label, {seed: value for seed, value in values.items() if value is not None}))
    return max((each for each in found if each[1]), key=lambda each: mean(each[1].values()), default=("", {}))


def _lead_in_time(results: Results, row: Row) -> Values:
    return _differences(results.scores(row), best_rival(results, row)[1])


def line_of(row: Row) -> tuple[str, int, str]:
    """What the exact rows of one early-stopping line have in common: group, ranks and program."""
    return row.group, row.stages, row.program


def stopping_line(results: Results, line: tuple[str, int, str]) -> list[tuple[float, Values]]:
    """Seconds and accuracies of the exact rows of a line, for more and more epochs."""
    rows = [row for row in results.experiment.rows if row.exact and line_of(row) == line and results.scores(row)]
    points = [(seconds, results.scores(row)) for row in rows if (seconds := results.seconds(row)) is not None]
    return sorted(points, key=itemgetter(0))


def _lead_over_line(results: Results, row: Row) -> Values:
    """Over exact training for as many epochs as take the same time, with a learning-rate schedule of its own: on the
    line of no more ranks whose means are best there, straight between the points on both sides.  None where no line
    begins so early, and of seeds that one of these points lacks."""
    seconds = results.seconds(row)
    if row.exact or seconds is None:
        return {}
    whole = [stopping_line(results, line) for line in dict.fromkeys(map(line_of, results.rivals(row)))]
    lines = [points for points in whole if points and points[0][0] <= seconds]
    if not lines:
        return {}

    def there(points: Sequence[tuple[float, float]]) -> float:
        return float(interp(seconds, [moment for moment, _ in points], [score for _, score in points]))

    best = max(lines, key=lambda line: there([(moment, mean(scores.values())) for moment, scores in line]))
    behind = bisect_right([moment for moment, _ in best], seconds)
    beside = best[behind - 1 : behind + 1]
    known = {seed: own for seed, own in results.scores(row).items() if all(seed in scores for _, scores in beside)}
    return {seed: own - there([(moment, scores[seed]) for moment, scores in beside]) for seed, own in known.items()}


def _lead_over_ratios(results: Results, row: Row) -> Values:
    """Of a schedule that decides on the way: over the best of those that are fixed, of its method or exact, and take no
    longer."""
    seconds = results.seconds(row)
    if row.settings.get("schedule.ratio") != "auto" or seconds is None:
        return {}
    fixed = [
        results.scores(rival)
        for rival in results.experiment.rows
        if rival is not row
        and (rival.exact or rival.settings.get("method.name") == row.settings["method.name"])
        and (results.seconds(rival) or inf) <= ABOUT * seconds
    ]
    return _differences(results.scores(row), max(fixed, key=lambda v: mean(v.values()), default={}))


def _differences(values: Values, others: Values) -> Values:
    return {seed: value - others[seed] for seed, value in values.items() if seed in others}


def _ratios(values: Values, others: Values) -> Values:
    return {seed: value / others[seed] for seed, value in values.items() if others.get(seed, 0.0) > 0}


def _speedup(results: Results, row: Row, measure: str = "epoch_seconds") -> Values:
    if not row.serial:
        return {}
    return _ratios(results.values(results.experiment.row(row.serial), measure), results.values(row, measure))


def _run_speedup(results: Results, row: Row) -> Values:
    """Of training and refresh as a whole."""
    return {} if results.counted(row) else _speedup(results, row, "seconds")


def _limit(results: Results, row: Row) -> Values:
    """How much more the machine does with so many independent copies at once than with one run alone."""
    if not row.limit:
        return {}
    copies = results.experiment.row(row.limit)
    return {s: copies.copies * each for s, each in _speedup(results, replace(copies, serial=row.serial)).items()}


MEASURES: dict[str, Measure] = {
    "train_accuracy": Measure("training accuracy %", _last("train_accuracy"), points=True),
    "test_accuracy": Measure("test accuracy %", _last("test_accuracy"), points=True),
    "test_accuracy_bn": Measure("the same, BatchNorm re-estimated %", _last("test_accuracy_bn"), points=True),
    "test_loss": Measure("test loss", _last("test_loss"), ".4f"),
    "exact_in_time": Measure(
        "best exact stopped at the same time %", lambda r, row: best_rival(r, row)[1], points=True
    ),
    "lead_in_time": Measure("lead over that", _lead_in_time, points=True),
    "lead_over_line": Measure("lead over exact training for as long", _lead_over_line, points=True),
    "lead_over_ratios": Measure("lead over the best fixed ratio", _lead_over_ratios, points=True),
    "parallel_epochs": Measure(
        "parallel epochs", _each(lambda run: sum(r.phase == "parallel" for r in run.records)), ".1f"
    ),
    "label_signal": Measure("label signal of stage 0", _each(_label_signal), ".3f"),
    "violation": Measure("violation", _each(lambda run: _late(run, _violation)), ".3f"),
    "seconds": Measure("training and refresh s", _each(lambda run: run.clock()[-1], timed=True), ".1f", median=True),
    "epoch_seconds": Measure("s an epoch", _each(_epoch_seconds, timed=True), ".3g", median=True),
    "objective": Measure("augmented Lagrangian", _last("objective"), ".4g"),
    "objective_rises": Measure("rises", _each(_rises), ".1f"),
    "residual": Measure("residual", _last("residual"), ".3g"),
    "residual_left": Measure("residual, last / largest", _each(_residual_left), ".3g"),
    "rate": Measure("k · step², last / first quarter", _each(_rate), ".3g"),
    "speedup": Measure("speed-up", _speedup, median=True),
    "run_speedup": Measure("speed-up of the run", _run_speedup, median=True),
    "limit": Measure("limit", _limit, median=True),
    "limit_share": Measure("share of the limit", lambda r, row: _ratios(_speedup(r, row), _limit(r, row)), median=True),
}
