"""tools/reproduce: declarations that resolve, tables and verdicts of hand-made records, and what is started when."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
import tarfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hpcsplit.config import load
from hpcsplit.host.launchers import mpirun
from hpcsplit.run.records import EpochRecord, Phase, StageRecord
from tools.experiments import __main__ as reproduce
from tools.experiments import copies, running
from tools.experiments.declaring import EXPERIMENTS, Claim, Experiment, Row, Scale, ScaleName, experiment_of
from tools.experiments.keeping import archive_of, pack, unpack, write_page
from tools.experiments.measuring import CURVES, MEASURES, Results, Run, line_of, stopping_line
from tools.experiments.reporting import Report, answer, interval, judge
from tools.experiments.running import ALONE, Task, may_join, ranks_of, run_all, tasks_of
from tools.program import ROOT

SMALL = EXPERIMENTS["tssm-figure-1"]
GROUP = "fashion_mnist"

# ------------------------------------------------------------------------------------------------ declarations


def tasks(experiment: Experiment, scale: ScaleName, cores: int, out: Path = Path("out"), seeds: int = 1) -> list[Task]:
    rows = experiment.rows_at(scale)
    return tasks_of(experiment, scale, rows=rows, seeds=seeds, extra={}, out=out, cores=cores)


@pytest.mark.parametrize(
    ("experiment", "scale"),
    [pytest.param(e, scale, id=f"{e.name}-{scale}") for e in EXPERIMENTS.values() for scale in e.scales],
)
def test_every_row_resolves(experiment: Experiment, scale: ScaleName) -> None:
    for cores in (2, 8):
        for task in tasks(experiment, scale, cores):
            config = task.resolved()
            assert config.run.runner == ("mpi" if task.measured else "lockstep"), task.name
            assert 0 <= config.data.batch_size <= (config.data.limit_train or 50_000), task.name
            assert (config.method.name == "backprop") == task.row.exact, task.name


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=list(EXPERIMENTS))
def test_names_in_a_declaration_exist(experiment: Experiment) -> None:
    keys = [row.key for row in experiment.rows]
    assert len(keys) == len(set(keys))
    assert {row.serial or row.key for row in experiment.rows} | {
        row.limit or row.key for row in experiment.rows
    } <= set(keys)
    assert {key for claim in experiment.claims for key in (claim.row, claim.rival or claim.row)} <= set(keys)
    assert {*experiment.columns, *(claim.measure for claim in experiment.claims)} <= set(MEASURES)
    assert experiment.judged_by in MEASURES
    assert set(experiment.curves) <= set(CURVES)
    assert {experiment.plane} <= {*MEASURES, ""}
    for scale in experiment.scales:
        assert set(experiment.scale(scale).groups) <= {row.group for row in experiment.rows}


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_copies_are_compared_after_as_many_samples(scale: ScaleName) -> None:
    configs = [task.resolved() for task in tasks(EXPERIMENTS["sph-figure-4"], scale, 2)]
    assert len({config.data.copies * config.schedule.epochs for config in configs}) == 1
    assert len({config.data.copies for config in configs}) > 1


def test_the_kept_runs_are_those_of_the_declarations(tmp_path: Path) -> None:
    """Every run behind docs/results.md is found finished by the settings that are declared today."""
    for archive in sorted((ROOT / "docs" / "results").glob("*-small.tar.xz")):
        experiment, out = EXPERIMENTS[archive.name.removesuffix("-small.tar.xz")], tmp_path / archive.name
        out.mkdir()
        seeds = experiment.small.seeds
        planned = {task.name: task for task in tasks(experiment, "small", 2, out, seeds=seeds)}
        assert [name for name in unpack(archive, out) if not planned[name].finished()] == []


PARTS = """
several = [{ set = "one", method.beta = 3.0 }, { set = "two", optim.lr = 0.5 }]
five = [{ b = 5, method.beta = 5.0, method.eta_kappa = 2.0 }]
[more]
measure = "test_loss"
above = 0.0
[a]
method = { name = "al", beta = 1.0 }
[b]
like = "a"
method.beta = 2.0
stages = 2
[both]
notes = ["first"]
small = { seeds = 3, model.width = 8 }
"""
TABLE = """
like = "both"
config = "tssm"
title = ""
source = ""
says = ""
hardware = ""
columns = []
notes = ["second"]
base = { like = "a", schedule.epochs = 4 }
small.model.depth = 3
cells = ["90 %"]
rows = [
    ["plain", "one row", "b", { paper = "hidden" }],
    { each.set = "several", group = "{set}", method.eta_kappa = 0.0, of = [
        ["{set}-{k}", "{k} ranks of {set}", "b", { stages = "{k}", each.k = [3, 4] }],
        ["{set}-own", "", "b", { each.b = "five", method.eta_kappa = 1.0, paper = "{b}" }],
    ] },
]
claims = [
    ["{key} is better", "more", "{key}", { rival = "plain", each.row = { stages = 2, group = "one" } }],
    ["below", "more", "one-3", "one-4", { above = -1.0 }],
]
"""


def declared(table: str = TABLE) -> Experiment:
    return experiment_of("x", tomllib.loads(table), tomllib.loads(PARTS))


def test_what_a_table_declares() -> None:
    """The settings of a row: what is around it, what it is like, what the members of `each` bring, its own."""
    e, al = declared(), {"method.name": "al"}
    assert e.base == {**al, "method.beta": 1.0, "schedule.epochs": 4}
    assert (e.small.settings, e.small.seeds, e.notes) == ({"model.width": 8, "model.depth": 3}, 3, ("first", "second"))
    assert [row.key for row in e.rows] == ["plain", "one-3", "one-4", "one-own", "two-3", "two-4", "two-own"]
    assert e.row("plain") == Row("plain", "one row", {**al, "method.beta": 2.0}, 2, paper="90 %")
    around = {**al, "method.beta": 2.0, "method.eta_kappa": 0.0}
    assert e.row("one-3") == Row("one-3", "3 ranks of one", around, 3, "one")
    assert e.row("two-4") == Row("two-4", "4 ranks of two", {**around, "optim.lr": 0.5}, 4, "two")
    own = {**al, "method.beta": 5.0, "method.eta_kappa": 1.0}
    assert e.row("one-own") == Row("one-own", "", own, 2, "one", paper="5")
    assert e.claims == (
        Claim("one-own is better", "one-own", "test_loss", "plain", above=0.0),
        Claim("below", "one-3", "test_loss", "one-4", above=-1.0),
    )


def test_more_cells_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="x: 8 cells for 7 rows; leave out the last ones"):
        declared(TABLE.replace('["90 %"]', str(["90 %"] * 8)))


# ------------------------------------------------------------------------------------------------ judging


def claim(**bounds: Any) -> Claim:
    return Claim("it does", "a", "train_accuracy", "b", **bounds)


def test_the_interval_is_students() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert interval([1.0]) is None


@pytest.mark.parametrize(
    ("values", "bounds", "points", "expected"),
    [
        ([5.0, 5.1, 4.9], {"above": 0.0}, True, "holds"),
        ([-5.0, -5.1, -4.9], {"above": 0.0}, True, "does not hold"),
        ([5.0, -5.0, 0.5], {"above": 0.0}, True, "not decided"),
        ([5.0], {"above": 0.0}, True, "not decided"),  # one run says nothing
        ([0.5, 0.51, 0.49], {"above": 0.0}, True, "not decided"),  # under a point needs eight
        ([0.5, 0.51, 0.49] * 3, {"above": 0.0}, True, "holds"),
        ([0.1, 0.2, 0.15], {"above": -1.0, "below": 1.0}, True, "holds"),
        ([3.0, 3.1, 3.2], {"above": -1.0, "below": 1.0}, True, "does not hold"),
        ([1.1, 1.2, 1.3], {"above": 0.0}, True, "holds"),  # a point and more needs no eight
        ([0.9, 1.0, 0.8], {"above": 0.0}, True, "not decided"),
        ([0.5, 0.51, 0.49, 0.5, 0.5, 0.51, 0.49], {"above": 0.0}, True, "not decided"),  # seven
        ([0.5, 0.51, 0.49, 0.5, 0.5, 0.51, 0.49, 0.5], {"above": 0.0}, True, "holds"),
        ([0.5, 0.51, 0.49], {"above": 0.0}, False, "holds"),  # no points: any clear difference
        ([-0.5, -0.51, -0.49] * 3, {"below": 0.0}, True, "holds"),
        ([0.5, 0.51, 0.49] * 3, {"below": 0.0}, True, "does not hold"),
        ([99.5, 99.6, 99.4] * 3, {"above": 99.0}, True, "holds"),
        ([98.5, 98.6, 98.4] * 3, {"above": 99.0}, True, "does not hold"),
        ([0.9, 1.0, 1.1], {"above": -1.0, "below": 1.0}, True, "not decided"),  # reaches over a bound
    ],
)
def test_answers(values: list[float], bounds: dict[str, float], points: bool, expected: str) -> None:
    assert answer(values, claim(**bounds), points=points) == expected


SAID = (  # what the sentence of a claim says of its bounds: above, below; a number stands where the sentence has it
    (r"reaches ([\d.]+) % training accuracy", lambda x: (x, None)),
    (r"not a point below|at most a point", lambda: (-1.0, None)),
    (r"within a point of", lambda: (-1.0, 1.0)),
    (r"stays below ([\d.]+) %", lambda x: (None, x)),
    (r"takes ([\d.]+) % less time", lambda x: (None, -x)),
    (r"within ([\d.]+) % of", lambda x: (None, x)),
    (r"at most ([\d.]+) points", lambda x: (-x, None)),
    (r"at least ([\d.]+) points above", lambda x: (x, None)),
    (r"reach ([\d.]+) of the machine's limit", lambda x: (x, None)),
    (r"faster than one", lambda: (1.0, None)),
    (r"never rises", lambda: (None, 0.5)),  # less than once
    (r"below a tenth of", lambda: (None, 0.1)),
    (r"falls: o\(1/k\)", lambda: (None, 1.0)),
)
LESS_IS_BETTER = {"test_loss", "seconds", "epoch_seconds", "violation"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_bounds_of_a_claim_are_those_of_its_sentence(name: str) -> None:
    for each in EXPERIMENTS[name].claims:
        said = next(((bounds, found) for rule, bounds in SAID if (found := re.search(rule, each.text))), None)
        if said:
            bounds, found = said
            expected = bounds(*map(float, found.groups()))
        else:  # one is more, or less, than the other
            less = each.measure in LESS_IS_BETTER or (each.measure == "train_accuracy" and " is below " in each.text)
            expected = (None, 0.0) if less else (0.0, None)
        assert (each.above, each.below) == expected, each.text


# ------------------------------------------------------------------------------------------------ hand-made runs


def run(accuracies: Sequence[float], epoch_s: float, *, stages: int = 1, phase: Phase = "serial", **more: Any) -> Run:
    records = [
        EpochRecord(
            epoch,
            phase,
            train_accuracy=accuracy,
            test_accuracy=accuracy - 0.1,
            train_s=epoch_s,
            refresh_s=0.0,
            stages=tuple(
                StageRecord(k, violation=0.2 * k, label_signal=0.25 if k == 0 else 1.0, compute_s=(k + 1.0))
                for k in range(stages)
            ),
            terms={"objective": 10.0 / (epoch + 1), "residual_sq": 0.1**epoch, "step_sq": 0.1**epoch},
        )
        for epoch, accuracy in enumerate(accuracies)
    ]
    return Run(records, **more)


@pytest.fixture
def results() -> Results:
    """Exact training has 50, 70, 90 % after 1, 2, 3 s; the method 80 % after 2.5 s."""
    rows = (
        Row("exact", "exact", exact=True, paper="almost 100 %"),
        Row("method", "method", stages=2),
        Row("many", "many", stages=4),
        Row("one", "one rank"),
        Row("copies", "two copies", copies=2),
        Row("two", "two ranks", stages=2, serial="one", limit="copies"),
    )
    experiment = dataclasses.replace(
        SMALL,
        rows=rows,
        claims=(
            Claim("the method is above exact", "method", "train_accuracy", "exact", above=0.0),
            Claim("it is ahead in time", "method", "lead_in_time", above=0.0),
            Claim("an epoch takes less", "many", "epoch_seconds", "exact", below=0.0, relative=True),
        ),
        columns=(*SMALL.columns, "speedup", "limit", "limit_share"),
        small=Scale(),
    )
    jitter = (0.0, 0.001, 0.002)
    runs: dict[str, dict[int, tuple[Run, ...]]] = {
        "exact": {s: (run([0.5, 0.7, 0.9 + j], 1.0),) for s, j in enumerate(jitter)},
        "method": {s: (run([0.5] * 4 + [0.8 + 2 * j], 0.5, stages=2, phase="parallel"),) for s, j in enumerate(jitter)},
        "many": {0: (run([0.5, 0.6], 20.0, stages=4, phase="parallel", counted=True),)},
        "one": {0: (run([0.5] * 3, 2.0),)},
        "copies": {0: (run([0.5] * 3, 2.2), run([0.5] * 3, 2.8))},
        "two": {0: (run([0.5] * 3, 1.25, stages=2),)},
    }
    return Results(experiment, runs)


def test_measures(results: Results) -> None:
    def value(key: str, measure: str) -> float:
        return results.values(results.experiment.row(key), measure)[0]

    assert value("method", "exact_in_time") == pytest.approx(70.0)  # two of its epochs end within 2.5 s
    assert value("method", "lead_in_time") == pytest.approx(10.0)
    assert value("method", "label_signal") == pytest.approx(0.25)
    assert value("method", "violation") == pytest.approx(0.2)
    assert value("many", "epoch_seconds") == pytest.approx(4.0)  # the slowest stage, not all in turn
    assert not results.values(results.experiment.row("many"), "exact_in_time")  # measured rows only
    assert not results.values(results.experiment.row("exact"), "label_signal")
    assert value("two", "speedup") == pytest.approx(1.6)
    assert value("two", "run_speedup") == pytest.approx(6.0 / 3.75)
    assert value("two", "limit") == pytest.approx(1.6)
    assert value("two", "limit_share") == pytest.approx(1.0)
    assert value("one", "objective_rises") == 0
    assert value("one", "residual_left") == pytest.approx(0.1)
    assert value("one", "rate") == pytest.approx(0.03)


def test_the_clock_of_a_run_has_its_refreshes_too() -> None:
    plain = run([0.5, 0.6, 0.7], 1.0, stages=2, phase="parallel")
    records = [dataclasses.replace(r, refresh_s=s) for r, s in zip(plain.records, (0.25, 0.0, 0.5), strict=True)]
    assert Run(records).clock() == [1.25, 2.25, 3.75]
    assert Run(records, counted=True).clock() == [2.25, 4.25, 6.75]  # the slowest stage takes 2 s
    assert plain.clock() == [1.0, 2.0, 3.0]


def test_curves_of_a_run() -> None:
    two = run([0.5, 0.6], 1.0, stages=2)
    assert two.series("violation") == [0.2, 0.2]
    assert run([0.5], 1.0).series("violation") == [None]
    assert two.series("test_accuracy") == pytest.approx([40.0, 50.0])


def test_the_line_joins_exact_training_for_fewer_epochs(results: Results) -> None:
    """Exact training for half as many epochs has 60 % after 1.5 s, so the line is at 80 % after 2.5 s."""
    short = Row("short", "exact, half of the epochs", exact=True, share=0.5)
    early = Row("early", "a method that ends before any exact row", stages=2)
    e = dataclasses.replace(results.experiment, rows=(*results.experiment.rows, short, early), plane="x")
    runs = {
        **results.runs,
        "short": {s: (run([0.5, 0.6], 0.75),) for s in range(3)},
        "early": {0: (run([0.9], 1.0, stages=2, phase="parallel"),)},
    }
    found = Results(e, runs)
    points = [(seconds, scores[0]) for seconds, scores in stopping_line(found, line_of(e.rows[0]))]
    assert points == [pytest.approx((1.5, 60.0)), pytest.approx((3.0, 90.0))]
    leads = found.values(e.row("method"), "lead_over_line")
    assert leads == pytest.approx({0: 0.0, 1: 0.2 - 0.1 * 2 / 3, 2: 0.4 - 0.2 * 2 / 3})
    lacking = Results(e, {**runs, "short": {s: runs["short"][s] for s in (0, 2)}})
    assert lacking.values(e.row("method"), "lead_over_line") == pytest.approx({s: leads[s] for s in (0, 2)})
    tiny = Row("tiny", "exact, a tenth of the epochs", exact=True, share=0.1)  # left of both points beside the method
    more = dataclasses.replace(e, rows=(*e.rows, tiny))
    beside = Results(more, {**runs, "tiny": {0: (run([0.3], 0.5),)}})
    assert beside.values(e.row("method"), "lead_over_line") == leads
    assert not found.values(e.row("early"), "lead_over_line")
    assert not found.values(e.row("many"), "lead_over_line")  # its times are counted
    assert not found.values(e.row("exact"), "lead_over_line")


def test_times_are_of_the_seeds_that_ran_alone(results: Results) -> None:
    e = dataclasses.replace(results.experiment, timed=2)
    assert set(Results(e, results.runs).values(e.row("method"), "seconds")) == {0, 1}
    assert set(Results(e, results.runs).values(e.row("method"), "test_accuracy")) == {0, 1, 2}
    assert not Results(e, results.runs).values(e.row("many"), "seconds")  # it ran in turns, beside others
    assert results.values(e.row("many"), "seconds")


def test_a_run_whose_time_counts_is_alone(tmp_path: Path) -> None:
    plan = tasks(EXPERIMENTS["plane"], "small", 2, tmp_path, seeds=4)
    alone, other = plan[0], plan[-1]
    assert alone.alone
    assert not other.alone
    assert [task.alone for task in plan] == sorted((task.alone for task in plan), reverse=True)
    assert {task.row.stages for task in plan if task.alone} == {1, 2}  # three stages in turn are not timed
    assert {task.seed for task in plan if task.alone} == {0, 1, 2}
    assert {task.row.key.partition("-")[0] for task in plan if task.measured and task.seed == 3} == {"exact", "ddp"}
    assert may_join(alone, [], in_turn=False)
    assert not may_join(alone, [other], in_turn=False)
    assert not may_join(other, [alone], in_turn=False)
    assert may_join(other, [other], in_turn=False)


def test_a_row_may_have_a_share_of_the_epochs(tmp_path: Path) -> None:
    found = {
        task.row.key: task.resolved().schedule.epochs for task in tasks(EXPERIMENTS["plane"], "small", 2, tmp_path)
    }
    assert (found["exact"], found["exact-0.6"], found["exact-2-0.4"], found["delayed-2"]) == (15, 9, 6, 15)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("model.name=resnet8", ("model.name", "resnet8")),
        ("data.pool=false", ("data.pool", False)),
        ("split.cuts=[1, 2]", ("split.cuts", [1, 2])),
        ("optim.lr=0.05", ("optim.lr", 0.05)),
    ],
)
def test_a_setting_is_read_as_on_the_command_line_of_a_run(text: str, setting: tuple[str, object]) -> None:
    assert reproduce._setting(text) == setting


@pytest.mark.parametrize("text", ["model.name", "name=3", "="])
def test_what_is_no_setting_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reproduce.main(["plane", "--set", text])
    assert f"{text} must be section.key=VALUE" in capsys.readouterr().err


def test_the_verdicts_name_n_difference_and_interval(results: Results) -> None:
    above, ahead, less = (judge(each, results) for each in results.experiment.claims)
    assert above
    assert ahead
    assert less
    assert (above.answer, ahead.answer, less.answer) == ("does not hold", "holds", "not decided")
    assert "n = 3, difference -9.9, 95 % [-10.15, -9.652]" in above.sentence()
    assert less.mean == pytest.approx(300)
    assert "counted" in less.sentence()


def test_the_table(results: Results) -> None:
    e = results.experiment
    report = Report(results, "small", e.rows, {"schedule.epochs": 3}, [], [], cores=2)
    text = report.markdown()
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "90.10 ± 0.10 (3)" in lines["exact"]
    assert "almost 100 %" in lines["exact"]
    assert "70.00 ± 0.00 (3) (exact)" in lines["method"]
    assert "| 4* |" in lines["many"]
    assert "counted" in text
    assert "schedule.epochs = 3" in text
    assert json.loads(json.dumps(report.as_json()))["rows"][0]["measures"]["train_accuracy"]["0"] == pytest.approx(90)
    assert "not run" not in text


def test_the_table_names_the_rows_that_were_not_run(results: Results) -> None:
    rows = [row for row in results.experiment.rows if row.key in ("exact", "method")]
    left_out = [results.experiment.row("many")]
    text = Report(results, "small", rows, {"model.name": "resnet8"}, [], left_out, cores=2).markdown()
    assert text.startswith(f"# {results.experiment.title} (here: resnet8)\n")
    assert "- not run: one, copies, two\n" in text
    assert "- many: needs more than 2 cores\n" in text


# ------------------------------------------------------------------------------------------------ running


def write_finished(task: Task, accuracy: float = 0.9) -> None:
    """What a finished run leaves behind."""
    config = task.resolved()
    task.folder.mkdir(parents=True)
    (task.folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    found = run([accuracy] * config.schedule.epochs, 1.0, stages=task.row.stages, phase="parallel")
    lines = "".join(record.to_json() + "\n" for record in found.records)
    (task.folder / "records.jsonl").write_text(lines, encoding="utf-8")
    start = {
        "time": "2026-01-31T10:00:00+0000",
        "python": "3.99",
        "packages": {"torch": "9.9"},
        "mpi": "MPICH Version:   5\nMPICH date",
        "cwd": "/home/somebody",
        "ranks": [{"cpu": "Fast Core 9", "host": "a-node"}],
    }
    (task.folder / "provenance.json").write_text(json.dumps({"starts": [start]}), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Pretended(Task):
    """A run whose program is one line of shell."""

    program: str = "true"

    def command(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return ["sh", "-c", f"cd {self.folder}; {self.program}"]

    def finished(self) -> bool:
        return (self.folder / "ended").exists()

    def result(self) -> Run:
        return run([0.5], 1.0)


def pretended(folder: Path, program: str, *, cores: int = 1, key: str = "", seed: int = 0) -> Pretended:
    row = Row(key or folder.name, folder.name, stages=cores)
    return Pretended(row, seed, ROOT / SMALL.file, {}, folder, measured=True, program=program)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(running, "POLL_S", 0.01)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    tasks = [
        pretended(tmp_path / "old", "exit 1"),
        pretended(tmp_path / "new", "echo > ended"),
    ]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "ended").touch()
    said: list[str] = []
    assert run_all(tasks, [0], in_turn=False, say=said.append) == []
    assert said[0] == "1 of 2 runs are there already"
    assert said[1].startswith("[2/2] new: 1 epochs, training 50.00 %")


def test_a_failure_is_reported_and_stops_no_other(tmp_path: Path) -> None:
    tasks = [
        pretended(tmp_path / "bad", "echo hpcsplit: no such data; echo launcher talks on; exit 65"),
        pretended(tmp_path / "lost", "true"),
        pretended(tmp_path / "good", "echo > ended"),
    ]
    said: list[str] = []
    failures = run_all(tasks, [0, 1], in_turn=False, say=said.append)
    assert {f.task.name: (f.exit_code, f.sentence) for f in failures} == {
        "bad": (65, "hpcsplit: no such data"),
        "lost": (0, "it ended well, but its records are not those of these settings"),
    }
    assert any("FAILED, exit 65: hpcsplit: no such data" in line for line in said)
    assert any(line.split("] ")[1].startswith("good: 1 epochs") for line in said)


def spans(tasks: Sequence[Pretended]) -> dict[str, tuple[float, float]]:
    def span(text: str) -> tuple[float, float]:
        began, ended = map(float, text.split())
        return began, ended

    return {task.name: span((task.folder / "ended").read_text()) for task in tasks}


TIMED = "date +%s.%N > began; sleep 0.4; { cat began; date +%s.%N; } > ended"


def test_runs_share_the_cores(tmp_path: Path) -> None:
    wide = pretended(tmp_path / "wide", TIMED, cores=2)
    narrow = [pretended(tmp_path / name, TIMED) for name in ("n1", "n2")]
    assert run_all([narrow[0], wide, narrow[1]], [0, 1], in_turn=False, say=lambda text: None) == []
    when = spans([wide, *narrow])
    assert when["n2"][0] < when["n1"][1]  # both at once, the wide one when both cores are free
    assert when["wide"][0] >= max(when["n1"][1], when["n2"][1])


def test_timings_are_taken_in_turn(tmp_path: Path) -> None:
    tasks = [
        pretended(tmp_path / "one-0", TIMED, key="one"),
        pretended(tmp_path / "copy-0", TIMED, key="copies"),
        pretended(tmp_path / "copy-0-b", TIMED, key="copies"),
        pretended(tmp_path / "one-1", TIMED, key="one", seed=1),
    ]
    assert run_all(tasks, [0, 1], in_turn=True, say=lambda text: None) == []
    when = spans(tasks)
    assert when["copy-0-b"][0] < when["copy-0"][1]
    turns = [when["one-0"], when["copy-0"], when["one-1"]]
    assert all(before[1] <= after[0] for before, after in pairwise(turns))


def test_an_interruption_stops_what_was_started(tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    long = pretended(tmp_path / "long", "exec sleep 60")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_all([pretended(tmp_path / "short", "echo > ended"), long], [0, 1], in_turn=False, say=interrupt)
    assert time.monotonic() - began < 10


def test_cores_decide_between_mpi_and_lockstep(tmp_path: Path) -> None:
    on_two = {task.row.key: task for task in tasks(EXPERIMENTS["tssm-stages"], "small", 2, tmp_path)}
    assert on_two["gsadmm-2"].command()[:3] == [mpirun(), "-n", "2"]
    assert on_two["gsadmm-2"].cores == 2
    assert on_two["adam"].command()[0] == sys.executable
    assert on_two["adam"].cores == 1
    assert on_two["gsadmm-3"].command()[0] == sys.executable
    assert on_two["gsadmm-3"].cores == 1
    assert {task.row.stages for task in tasks(EXPERIMENTS["pdadmm-width"], "small", 2)} == {1, 2}  # 4 cannot be timed


# ------------------------------------------------------------------------------------------------ on a cluster


def for_slurm(what: str, capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert reproduce.main([*map(str, words), "--slurm", what]) == 0
    return capsys.readouterr().out.splitlines()


def test_an_array_has_the_unfinished_turns_of_so_many_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tssm-stages", "--only", "adam,gsadmm-2,gsadmm-3", "--seeds", 2, "--epochs", 3, "--out", tmp_path]
    assert for_slurm("arrays", capsys, *words) == ["-n 1 --array=0,3", "-n 2 --array=1,4", "-n 3 --array=2,5"]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    program, config, *given = for_slurm("words", capsys, *words)
    assert (program, config) == ("hpcsplit train", str(ROOT / "jobs" / "tssm.toml"))
    assert given[-2:] == ["--run-dir", str(tmp_path / "gsadmm-2-1")]
    assert load(config, list(zip([k[2:] for k in given[:-2:2]], given[1:-2:2], strict=True))).run.seed == 1
    e, extra = EXPERIMENTS["tssm-stages"], {"schedule.epochs": 3}
    rows = [e.row("gsadmm-2")]
    for task in tasks_of(e, "small", rows=rows, seeds=2, extra=extra, out=tmp_path, cores=2):
        write_finished(task)
    words += ["--scale", "small"]
    assert for_slurm("arrays", capsys, *words) == ["-n 1 --array=0,3", "-n 3 --array=2,5"]
    assert for_slurm("words", capsys, *words) == [""]


def test_copies_are_one_task_of_as_many_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where timings are the point a task has its node alone."""
    assert ranks_of(dataclasses.replace(SMALL, rows=(Row("five", "", copies=5), Row("two", "", stages=2)))) == 5
    words = ["pdadmm-layers", "--only", "4-serial,4-copies-4,4-2", "--seeds", 1, "--out", tmp_path]
    expected = ["-n 1 --exclusive --array=0", "-n 2 --exclusive --array=1", "-n 4 --exclusive --array=2"]
    assert for_slurm("arrays", capsys, *words) == expected
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    program, *given = for_slurm("words", capsys, *words)
    assert program == "tools.experiments.copies"
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, argv, env: started.append((argv, env)))
    for name, value in {"PMI_RANK": "3", "SLURM_PROCID": "0", "PMI_SIZE": "4", "HPCSPLIT_DATA": "/data"}.items():
        monkeypatch.setenv(name, value)
    copies.main(given)
    ((argv, env),) = started
    assert argv[1:4] == ["-m", "hpcsplit", "train"]
    assert argv[4:] == [*given[:-1], str(tmp_path / "4-copies-4-0-copy3")]
    assert env["HPCSPLIT_DATA"] == "/data"
    assert not [name for name in env if name.startswith(("PMI", "SLURM"))]


def test_the_end_of_a_task_marks_a_run_that_was_alone_and_drops_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    e = EXPERIMENTS["plane"]
    extra = {"schedule.epochs": 3}
    (task,) = tasks_of(e, "small", rows=[e.row("delayed-2")], seeds=1, extra=extra, out=tmp_path, cores=2)
    words = ["plane", "--scale", "small", "--only", "delayed-2", "--seeds", 1, "--epochs", 3, "--out", tmp_path]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert for_slurm("ended", capsys, *words) == []
    assert not task.folder.exists()
    assert reproduce.main([*map(str, words), "--slurm", "table"]) == 70
    assert "- delayed-2-0: not finished, see the output of task 0 of the array\n" in capsys.readouterr().out
    write_finished(task)
    (task.folder / "aux").mkdir()
    assert not task.finished()
    assert for_slurm("ended", capsys, *words) == []
    assert task.finished()
    assert not (task.folder / "aux").exists()
    assert reproduce.main([*map(str, words), "--slurm", "table"]) == 0
    assert "90.00" not in (out := capsys.readouterr().out)
    assert "80.00 (1)" in out


# ------------------------------------------------------------------------------------------------ the command


def test_the_whole_command_on_finished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(task: Task, cores: Sequence[int]) -> None:
        raise AssertionError(f"{task.name} is started again")

    monkeypatch.setattr(running, "start", refuse)
    rows = [row for row in SMALL.rows if row.key in (f"{GROUP}-adam", f"{GROUP}-sgd")]
    for task in tasks_of(SMALL, "small", rows=rows, seeds=2, extra={"schedule.epochs": 3}, out=tmp_path, cores=1):
        write_finished(task, 0.9 if task.row.key.endswith("adam") else 0.8)
    words = [SMALL.name, "--seeds", "2", "--epochs", "3", "--only", f"{GROUP}-adam,{GROUP}-sgd", "--out", str(tmp_path)]
    assert reproduce.main(words) == 0
    out, err = capsys.readouterr()
    assert "4 of 4 runs are there already" in err
    assert "90.00 ± 0.00 (2)" in out
    assert "x Fast Core 9, one thread a rank" in out
    assert "versions: torch 9.9, MPICH Version: 5, python 3.99" in out
    assert (tmp_path / f"{SMALL.name}.md").read_text(encoding="utf-8").strip() == out.strip()
    assert json.loads((tmp_path / f"{SMALL.name}.json").read_text(encoding="utf-8"))["failed"] == []
    assert (tmp_path / f"{SMALL.name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_every_table_with_its_picture(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / f"reproduce-{SMALL.name}-small-lr=1"
    folder.mkdir(parents=True)
    (folder / f"{SMALL.name}.md").write_text("# Title\n\n| a |\n\n## Claims\n", encoding="utf-8")
    (folder / f"{SMALL.name}.png").write_bytes(b"picture")
    page = tmp_path / "docs" / "results.md"
    assert write_page(tmp_path / "none", page, [SMALL]) == []
    assert not page.exists()
    name = f"{SMALL.name}-small-lr=1"
    assert write_page(tmp_path / "runs", page, [*EXPERIMENTS.values()]) == [name]
    text = page.read_text(encoding="utf-8")
    assert "\n## Title\n\n| a |\n\n### Claims\n" in text
    (picture,) = re.findall(r"!\[.*\]\((.*)\)", text)
    assert (page.parent / picture).read_bytes() == b"picture"


def test_the_page_keeps_what_was_not_run_here(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    for name, text in (("plane-small", "of yesterday"), ("steps-small", "of today"), ("plane-small", "new")):
        folder = tmp_path / name / f"reproduce-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / name.removesuffix("-small")
        stem.with_suffix(".md").write_text(f"# The {stem.name}\n\n## Claims\n\n{text}\n", encoding="utf-8")
        stem.with_suffix(".png").write_bytes(b"picture")
        assert write_page(tmp_path / name, page, [*EXPERIMENTS.values()]) == [name]
    text = page.read_text(encoding="utf-8")
    assert [text.count(word) for word in ("# Results", "\n## ", "of yesterday", "new", "of today")] == [1, 2, 0, 1, 1]
    names = list(EXPERIMENTS)
    assert (text.index("The plane") < text.index("The steps")) == (names.index("plane") < names.index("steps"))


def test_a_study_goes_on_from_the_kept_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "PAGE", tmp_path / "docs" / "results.md")
    name, rows = f"{SMALL.name}-small-3", [SMALL.row(f"{GROUP}-adam")]
    there, here = tmp_path / "runs" / f"reproduce-{name}", tmp_path / "here"
    extra = {"schedule.epochs": 3, "data.root": "/home/somebody/images"}
    done, half = tasks_of(SMALL, "small", rows=rows, seeds=2, extra=extra, out=there, cores=1)
    write_finished(done, 0.9)
    write_finished(half, 0.1)
    lines = (half.folder / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (half.folder / "records.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    (done.folder / "checkpoints").mkdir()
    (done.folder / ALONE).touch()
    words = [SMALL.name, "--epochs", "3", "--show", "--out"]
    assert reproduce.main([*words, str(there)]) == 0
    table = capsys.readouterr().out
    assert "90.00 (1)" in table
    write_page(there.parent, reproduce.PAGE, [SMALL])
    archive = archive_of(reproduce.PAGE, name)
    with tarfile.open(archive) as tar:
        assert {Path(entry.name).parent.name for entry in tar} == {done.name}
        files = [tar.extractfile(entry) for entry in tar]
        assert not any(file is None or b"somebody" in file.read() for file in files)
    before = archive.read_bytes()
    pack(there, archive)
    assert archive.read_bytes() == before

    assert reproduce.main([*words, str(here), "--kept"]) == 0
    out, err = capsys.readouterr()
    assert out == table
    assert "1 runs of docs/results.md are put back" in err
    assert (here / done.name / ALONE).exists()
    (here / done.name / "records.jsonl").write_text("", encoding="utf-8")  # begun anew here: it is not replaced
    assert unpack(archive, here) == []
    with pytest.raises(SystemExit):
        reproduce.main([*words, str(tmp_path / "nowhere")])
    assert "no finished run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        reproduce.main([SMALL.name, "--epochs", "4", "--kept", "--out", str(here)])
    assert f"docs/results.md has no {SMALL.name}-small-4" in capsys.readouterr().err


def test_the_table_shows_what_was_run_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [SMALL.row(f"{GROUP}-adam"), SMALL.row(f"{GROUP}-sgd")]
    for task in tasks_of(SMALL, "small", rows=rows, seeds=1, extra={"schedule.epochs": 3}, out=tmp_path, cores=1):
        write_finished(task)
    assert (
        reproduce.main([SMALL.name, "--epochs", "3", "--seeds", "1", "--only", rows[0].key, "--out", str(tmp_path)])
        == 0
    )
    out, err = capsys.readouterr()
    assert "1 of 1 runs are there already" in err
    assert all(row.label in out for row in rows)


def test_other_settings_are_not_the_finished_run(tmp_path: Path) -> None:
    rows = [SMALL.row(f"{GROUP}-adam")]
    (three,) = tasks_of(SMALL, "small", rows=rows, seeds=1, extra={"schedule.epochs": 3}, out=tmp_path, cores=1)
    (four,) = tasks_of(SMALL, "small", rows=rows, seeds=1, extra={"schedule.epochs": 4}, out=tmp_path, cores=1)
    assert not three.finished()
    write_finished(three)
    assert three.finished()
    assert not four.finished()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in EXPERIMENTS)
    assert "small, paper: fashion_mnist-sgd" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tssm-figur-2"], "did you mean tssm-figure-2?"),
        (["tssm-stages", "--only", "adm"], "did you mean adam?"),
        (["tssm-stages", "--seeds", "0"], "whole number from 1"),
        ([], "--list"),
    ],
)
def test_mistakes_of_usage(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        reproduce.main(words)
    assert left.value.code == 64
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks want two cores")
def test_data_parallel_training_is_exact_without_batch_norm(tmp_path: Path) -> None:
    """Two ranks with halves of the mini-batches, the last one odd, end with the losses of one rank."""
    options = {
        "data.name": "digits",
        "data.limit_train": 150,
        "data.limit_test": 50,
        "data.batch_size": 32,
        "data.augment": True,
        "model.name": "mlp",
        "model.depth": 2,
        "model.width": 16,
        "schedule.epochs": 3,
        "method.name": "backprop",
        "run.baseline": False,
        "run.device": "cpu",
    }
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    losses = {}
    for program, ranks in (("hpcsplit train", 1), ("tools.experiments.data_parallel", 2)):
        task = Task(
            Row("row", "", program=program, stages=ranks),
            0,
            tmp_path / "empty.toml",
            options,
            tmp_path / f"{ranks}",
            measured=True,
        )
        assert not run_all([task], sorted(os.sched_getaffinity(0))[:ranks], in_turn=False, say=print)
        losses[ranks] = [record.loss for record in task.result().records]
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    first, *_, last = losses[1]
    assert first is not None
    assert last is not None
    assert last < first


def test_each_start_has_a_log_of_its_own(tmp_path: Path) -> None:
    """Where the name of its row has a point, too: exact-0.8 with seed 1."""
    logs = {
        Task(Row("row", ""), 0, tmp_path / "c.toml", {}, tmp_path / name, measured=False).log
        for name in ("exact-0.8-1", "exact-0.8-2", "exact-0.9-1", "exact-0-1")
    }
    assert len(logs) == 4
