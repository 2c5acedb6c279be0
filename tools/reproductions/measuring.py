"""What the records of finished runs say: one number for each seed of a row, by the name of the measure."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from numpy import interp

from hpcsplit.run.records import EpochRecord
from tools.reproductions.declaring import Experiment, Row

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
        refresh = [record.refresh_s or 0.0 for record in self.records]
        return list(accumulate(map(sum, zip(self.epoch_seconds(), refresh, strict=True))))


@dataclass(frozen=True)
class Results:
    """The finished runs of an experiment: row key -> seed -> the run, or its copies that ran at once."""

    experiment: Experiment
    runs: Mapping[str, Mapping[int, Sequence[Run]]]

    def values(self, row: Row, measure: str) -> Values:
        """The measure of every seed that has one."""
        return MEASURES[measure].over(self, row)

    def of(self, key: str) -> Mapping[int, Sequence[Run]]:
        return self.runs.get(key, {})

    def counted(self, row: Row) -> bool:
        timed = (copies for seed, copies in self.of(row.key).items() if self.experiment.times(seed))
        return any(run.counted for copies in timed for run in copies)


@dataclass(frozen=True)
class Measure:
    """How a measure is found and written.

    Attributes:
        points: in percent points: a difference under 1 is only claimed from 8 seeds on.
        median: the seeds are summed up by their median, not by mean and standard deviation.
        who: a word about the row's value, behind it.
    """

    heading: str
    form: str
    over: Callable[[Results, Row], Values]
    points: bool = False
    median: bool = False
    who: Callable[[Results, Row], str] = lambda results, row: ""


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
            known = [value for run in copies if (value := of(run)) is not None]
            if len(known) == len(copies):
                found[seed] = statistics.mean(known)
        return found

    return over


def _last(quantity: str) -> Callable[[Run], float | None]:
    return lambda run: CURVES[quantity].of(run)[-1]


def _late(values: Sequence[float | None]) -> float | None:
    """Mean over the last quarter of the epochs, without those that have none."""
    known = [value for value in _quarters(values)[1] if value is not None]
    return statistics.mean(known) if known else None


def _quarters(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The first and the last quarter, at least one value each."""
    size = max(1, len(values) // 4)
    return values[:size], values[-size:]


def _label_signal(run: Run) -> float | None:
    """The only stage of a network that is not split has the label itself."""
    if len(run.records[-1].stages) < 2:
        return None
    return _late([record.stages[0].label_signal for record in run.records if record.phase == "parallel"])


def _parallel_epochs(run: Run) -> float:
    return sum(record.phase == "parallel" for record in run.records)


def _violation(run: Run) -> float | None:
    """Of the worst boundary."""
    both = zip(run.records, _violations(run), strict=True)
    return _late([violation for record, violation in both if record.phase == "parallel"])


def _median_epoch_seconds(run: Run) -> float:
    """The first epoch warms up."""
    return statistics.median(run.epoch_seconds()[1:] or run.epoch_seconds())


_epoch_seconds = _each(_median_epoch_seconds, timed=True)


def _known(run: Run, quantity: str) -> list[float]:
    return [value for value in CURVES[quantity].of(run) if value is not None]


def _rises(run: Run) -> float | None:
    """Iterations after which the objective is larger than before, by more than its rounding in float32."""
    values = _known(run, "objective")
    return sum(b > a + 1e-6 * abs(a) for a, b in pairwise(values)) if values else None


def _residual_left(run: Run) -> float | None:
    values = _known(run, "residual")
    return values[-1] / max(values) if values and max(values) > 0 else None


def _rate(run: Run) -> float | None:
    values = _known(run, "rate")
    first, last = _quarters(values)
    return statistics.median(last) / statistics.median(first) if values and statistics.median(first) > 0 else None


# ------------------------------------------------------------------------------------------------ of several rows


def _at_time(exact: Run, seconds: float, quantity: str) -> float | None:
    """The accuracy after the last epoch that ends in time; None where the first one does not, or was not evaluated."""
    done = [value for value, end in zip(CURVES[quantity].of(exact), exact.clock(), strict=True) if end <= seconds]
    return done[-1] if done else None


def _rivals_in_time(results: Results, row: Row) -> dict[str, Values]:
    """For each exact row on no more ranks than this one: its accuracy when stopped at this row's time, by seed."""
    if row.exact or results.counted(row):
        return {}
    found: dict[str, Values] = {}
    for rival in results.experiment.rows:
        if not rival.exact or rival.group != row.group or rival.stages > row.stages or results.counted(rival):
            continue
        exact = results.of(rival.key)
        values = {
            seed: _at_time(exact[seed][0], runs[0].clock()[-1], results.experiment.judged_by)
            for seed, runs in results.of(row.key).items()
            if seed in exact and results.experiment.times(seed)
        }
        known = {seed: value for seed, value in values.items() if value is not None}
        if known:
            found[rival.label] = known
    return found


def _best_rival(results: Results, row: Row) -> tuple[str, Values]:
    rivals = _rivals_in_time(results, row)
    return max(rivals.items(), key=lambda item: statistics.mean(item[1].values()), default=("", {}))


def _lead(results: Results, row: Row) -> Values:
    own = results.values(row, results.experiment.judged_by)
    return {seed: own[seed] - value for seed, value in _best_rival(results, row)[1].items() if seed in own}


def line_of(row: Row) -> tuple[str, int, str]:
    """What the exact rows of one early-stopping line have in common: group, ranks and program."""
    return row.group, row.stages, row.program


def stopping_line(results: Results, line: tuple[str, int, str], seed: int | None = None) -> list[tuple[float, float]]:
    """(seconds, accuracy) of the exact rows of a line, for more and more epochs; of one seed, or the means.
    Seconds are the median over seeds, since they are the machine's."""
    points = []
    for row in results.experiment.rows:
        accuracies, times = (results.values(row, name) for name in (results.experiment.judged_by, "seconds"))
        if row.exact and line_of(row) == line and accuracies and times and not results.counted(row):
            seconds = statistics.median(times.values())
            if seed is None:
                points.append((seconds, statistics.mean(accuracies.values())))
            elif seed in accuracies:
                points.append((seconds, accuracies[seed]))
    return sorted(points)


def _lead_over_line(results: Results, row: Row) -> Values:
    """Over exact training for as many epochs as take the same time, with a learning-rate schedule of its own: on the
    line of no more ranks whose means are best there, straight between the points on both sides.  None where no line
    begins so early, and of seeds that one of these points lacks."""
    found, times = {}, results.values(row, "seconds")
    if row.exact or results.counted(row) or not times:
        return {}
    seconds = statistics.median(times.values())
    exact = [r for r in results.experiment.rows if r.exact and r.group == row.group and r.stages <= row.stages]
    whole = {line: stopping_line(results, line) for line in map(line_of, exact)}
    lines = {line: points for line, points in whole.items() if points and points[0][0] <= seconds}
    if not lines:
        return {}
    best = max(lines, key=lambda line: interp(seconds, *zip(*lines[line], strict=True)))
    moments = [moment for moment, _ in lines[best]]
    behind = bisect_right(moments, seconds)
    beside = moments[behind - 1 : behind + 1]
    for seed, accuracy in results.values(row, results.experiment.judged_by).items():
        points = [point for point in stopping_line(results, best, seed) if point[0] in beside]
        if len(points) == len(beside):
            found[seed] = accuracy - float(interp(seconds, *zip(*points, strict=True)))
    return found


def _lead_over_ratios(results: Results, row: Row) -> Values:
    """Of a schedule that decides on the way: over the best of those that are fixed, of its method or exact, and take no
    longer."""
    times = results.values(row, "seconds")
    if row.settings.get("schedule.ratio") != "auto" or results.counted(row) or not times:
        return {}
    limit, own = ABOUT * statistics.median(times.values()), results.values(row, results.experiment.judged_by)
    fixed = []
    for rival in results.experiment.rows:
        related = rival.exact or rival.settings.get("method.name") == row.settings["method.name"]
        found, seconds = (results.values(rival, name) for name in (results.experiment.judged_by, "seconds"))
        if rival is row or not related or results.counted(rival) or not seconds:
            continue
        if statistics.median(seconds.values()) <= limit:
            fixed.append(found)
    best = max(fixed, key=lambda values: statistics.mean(values.values()), default={})
    return {seed: own[seed] - best[seed] for seed in own if seed in best}


def _speedup(results: Results, row: Row) -> Values:
    if not row.serial:
        return {}
    alone = _epoch_seconds(results, results.experiment.row(row.serial))
    own = _epoch_seconds(results, row)
    return {seed: alone[seed] / seconds for seed, seconds in own.items() if seed in alone and seconds > 0}


def _run_speedup(results: Results, row: Row) -> Values:
    """Of training and refresh as a whole."""
    if not row.serial or results.counted(row):
        return {}
    alone, own = (results.values(r, "seconds") for r in (results.experiment.row(row.serial), row))
    return {seed: alone[seed] / seconds for seed, seconds in own.items() if seed in alone}


def _limit(results: Results, row: Row) -> Values:
    """How much more the machine does with so many independent copies at once than with one run alone."""
    if not row.limit:
        return {}
    copies = results.experiment.row(row.limit)
    alone = _epoch_seconds(results, results.experiment.row(row.serial))
    at_once = _epoch_seconds(results, copies)
    return {s: copies.copies * alone[s] / seconds for s, seconds in at_once.items() if s in alone and seconds > 0}


def _limit_share(results: Results, row: Row) -> Values:
    limit, speedup = _limit(results, row), _speedup(results, row)
    return {seed: speedup[seed] / limit[seed] for seed in speedup if seed in limit}


MEASURES: dict[str, Measure] = {
    "train_accuracy": Measure("training accuracy %", ".2f", _each(_last("train_accuracy")), points=True),
    "test_accuracy": Measure("test accuracy %", ".2f", _each(_last("test_accuracy")), points=True),
    "test_accuracy_bn": Measure(
        "the same, BatchNorm re-estimated %", ".2f", _each(_last("test_accuracy_bn")), points=True
    ),
    "test_loss": Measure("test loss", ".4f", _each(_last("test_loss"))),
    "exact_in_time": Measure(
        "best exact stopped at the same time %",
        ".2f",
        lambda results, row: _best_rival(results, row)[1],
        points=True,
        who=lambda results, row: _best_rival(results, row)[0],
    ),
    "lead_in_time": Measure("lead over that", ".2f", _lead, points=True),
    "lead_over_line": Measure("lead over exact training for as long", ".2f", _lead_over_line, points=True),
    "lead_over_ratios": Measure("lead over the best fixed ratio", ".2f", _lead_over_ratios, points=True),
    "parallel_epochs": Measure("parallel epochs", ".1f", _each(_parallel_epochs)),
    "label_signal": Measure("label signal of stage 0", ".3f", _each(_label_signal)),
    "violation": Measure("violation", ".3f", _each(_violation)),
    "seconds": Measure("training and refresh s", ".1f", _each(lambda run: run.clock()[-1], timed=True), median=True),
    "epoch_seconds": Measure("s an epoch", ".3g", _epoch_seconds, median=True),
    "objective": Measure("augmented Lagrangian", ".4g", _each(_last("objective"))),
    "objective_rises": Measure("rises", ".1f", _each(_rises)),
    "residual": Measure("residual", ".3g", _each(_last("residual"))),
    "residual_left": Measure("residual, last / largest", ".3g", _each(_residual_left)),
    "rate": Measure("k · step², last / first quarter", ".3g", _each(_rate)),
    "speedup": Measure("speed-up", ".2f", _speedup, median=True),
    "run_speedup": Measure("speed-up of the run", ".2f", _run_speedup, median=True),
    "limit": Measure("limit", ".2f", _limit, median=True),
    "limit_share": Measure("share of the limit", ".2f", _limit_share, median=True),
}

# ------------------------------------------------------------------------------------------------ over the epochs


@dataclass(frozen=True)
class Curve:
    """A quantity of each epoch."""

    heading: str
    of: Callable[[Run], Sequence[float | None]]
    log: bool = False


def _percent(key: str) -> Callable[[Run], list[float | None]]:
    def of(run: Run) -> list[float | None]:
        fractions = [getattr(record, key) for record in run.records]
        return [None if value is None else 100 * value for value in fractions]

    return of


def _term(run: Run, name: str) -> list[float | None]:
    """A term of the method's objective; None in epochs that have none."""
    return [(record.terms or {}).get(name) for record in run.records]


def _k_step_sq(run: Run) -> list[float | None]:
    """k ‖step‖², k = 1, 2 …, of the variables and the weights: it goes to 0 where ‖step‖² is o(1/k)."""
    steps = zip(_term(run, "step_sq"), _term(run, "weights_step_sq"), strict=True)
    return [None if aux is None else k * (aux + (weights or 0.0)) for k, (aux, weights) in enumerate(steps, 1)]


def _violations(run: Run) -> list[float | None]:
    return [max((s.violation for s in r.stages[1:] if s.violation is not None), default=None) for r in run.records]


def _residual(run: Run) -> list[float | None]:
    return [None if value is None else value**0.5 for value in _term(run, "residual_sq")]


CURVES: dict[str, Curve] = {
    "train_accuracy": Curve("training accuracy (%)", _percent("train_accuracy")),
    "test_accuracy": Curve("test accuracy (%)", _percent("test_accuracy")),
    "test_accuracy_bn": Curve("test accuracy, BatchNorm re-estimated (%)", _percent("test_accuracy_bn")),
    "loss": Curve("training loss of the whole network", lambda run: [record.loss for record in run.records], log=True),
    "test_loss": Curve("test loss", lambda run: [record.test_loss for record in run.records], log=True),
    "violation": Curve("violation, worst boundary", _violations),
    "objective": Curve("augmented Lagrangian a sample", lambda run: _term(run, "objective"), log=True),
    "residual": Curve("residual a sample", _residual, log=True),
    "rate": Curve("k · squared step a sample", _k_step_sq, log=True),
}
