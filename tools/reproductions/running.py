"""Runs what is not finished yet, on the cores of this machine; a run that fails stops no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcsplit.config import Config, load
from hpcsplit.config.option import show
from hpcsplit.errors import DONE, HpcsplitError
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import Records
from tools.program import ROOT, last_line, mpirun
from tools.reproductions.declaring import Experiment, Row, ScaleName, Settings
from tools.reproductions.measuring import Results, Run

POLL_S = 0.2
ALONE = "alone"  # a file in the folder of a run beside which nothing else ran
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HPCSPLIT_PROGRESS": "plain", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Task:
    """One start of a row's program: with a seed (and one of its copies)."""

    row: Row
    seed: int
    config: Path
    settings: Settings
    folder: Path
    measured: bool
    alone: bool = False  # nothing else may run meanwhile

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def mark(self) -> Path:
        return self.folder / ALONE

    @property
    def cores(self) -> int:
        return self.row.stages if self.measured else 1

    @property
    def turn(self) -> tuple[str, int]:
        """Tasks of one turn run at once where timings are taken one after another."""
        return self.row.key, self.seed

    def overrides(self) -> list[tuple[str, str]]:
        return [(key, show(value)) for key, value in self.settings.items()]

    def resolved(self) -> Config:
        return load(self.config, self.overrides())

    def words(self) -> list[str]:
        """Of the command line, behind the program."""
        words = [word for key, value in self.overrides() for word in (f"--{key}", value)]
        return [str(self.config), *words, "--run-dir", str(self.folder)]

    def command(self) -> list[str]:
        launcher = [mpirun(), "-n", str(self.row.stages)] if self.measured and self.row.stages > 1 else []
        return [*launcher, sys.executable, "-m", *self.row.program.split(), *self.words()]

    def finished(self) -> bool:
        """Whether all epochs of a run with these settings are there."""
        try:
            found, wanted = load(self.folder / "config.toml"), self.resolved()
            same = wanted.fingerprint() == found.fingerprint() and wanted.run.runner == found.run.runner
            if self.alone and not self.mark.exists():
                return False
            return same and len(Records(RunDir(self.folder).records).load()) == wanted.schedule.epochs
        except HpcsplitError:
            return False

    def end(self) -> bool:
        """After its start has ended: note that it was alone, drop rows that its checkpoint needs no more; finished?"""
        if self.alone and self.folder.is_dir():
            self.mark.touch()
        finished = self.finished()
        if finished:
            shutil.rmtree(self.folder / "aux", ignore_errors=True)
        return finished

    def result(self) -> Run:
        """The finished run."""
        records = Records(RunDir(self.folder).records).load()
        starts = json.loads((self.folder / "provenance.json").read_text(encoding="utf-8"))["starts"]
        return Run(records, load(self.folder / "config.toml").run.runner == "lockstep", starts[-1])


@dataclass(frozen=True)
class Failure:
    """A run that did not end well: what it said last.  No exit code: of another process, which Slurm has started."""

    task: Task
    exit_code: int | None
    sentence: str

    def __str__(self) -> str:
        code = "" if self.exit_code is None else f"exit {self.exit_code}, "
        return f"{self.task.name}: {code}{self.sentence}"


@dataclass(frozen=True)
class _Started:
    task: Task
    process: subprocess.Popen[bytes]
    cores: list[int]
    began: float


def tasks_of(
    experiment: Experiment,
    scale: ScaleName,
    *,
    rows: Sequence[Row],
    seeds: int,
    extra: Settings,
    out: Path,
    cores: int,
) -> list[Task]:
    """All runs, those that are to be alone first, seed by seed.  A row with more stages than cores runs in turn on one
    core, to the same weights, and so does a seed whose times do not count; where timings are the point it is left out,
    as are copies for which there are too few cores."""
    tasks, cuts = [], experiment.scale(scale).cuts
    for seed in range(seeds):
        for row in rows:
            measured = row.stages <= cores and (experiment.times(seed) or row.stages == 1 or row.real)
            if ((experiment.in_turn or row.real) and not measured) or row.copies > cores:
                continue
            settings = {
                **experiment.base,
                **row.settings,
                **experiment.scale(scale).settings,
                **({"split.cuts": cuts[row.stages]} if row.stages in cuts else {}),
                **extra,
                "run.seed": seed,
                "run.threads": 1,
                "run.baseline": False,
                "checkpoint.keep": 1,
                **({} if measured else {"run.runner": "lockstep", "run.stages": row.stages}),
            }
            if row.share != 1.0:
                whole = load(ROOT / experiment.file, [(key, show(value)) for key, value in settings.items()])
                settings["schedule.epochs"] = max(1, round(row.share * whole.schedule.epochs))
            for copy in range(row.copies):
                name = f"{row.key}-{seed}" + (f"-copy{copy}" if row.copies > 1 else "")
                alone = measured and seed < experiment.timed
                tasks.append(Task(row, seed, ROOT / experiment.file, settings, out / name, measured, alone))
    return sorted(tasks, key=lambda task: not task.alone)


def run_all(tasks: Sequence[Task], cores: Sequence[int], *, in_turn: bool, say: Callable[[str], None]) -> list[Failure]:
    """Start every task that is not finished as soon as its cores are free, first come first; the failures.  One that
    is to be alone waits for all others to end, and they for it.

    `in_turn` starts a turn when the one before has ended.  Each run is bound to cores of its own.
    """
    waiting = [task for task in tasks if not task.finished()]
    done, total = len(tasks) - len(waiting), len(tasks)
    if done:
        say(f"{done} of {total} runs are there already")
    free, failures = list(cores), []
    running: list[_Started] = []
    try:
        while waiting or running:
            for task in list(waiting):
                if task.cores <= len(free) and may_join(task, [other.task for other in running], in_turn=in_turn):
                    waiting.remove(task)
                    mine, free = free[: task.cores], free[task.cores :]
                    running.append(_Started(task, start(task, mine), mine, time.monotonic()))
                elif in_turn or task.alone:
                    break
            time.sleep(POLL_S)
            for ended in [each for each in running if each.process.poll() is not None]:
                running.remove(ended)
                free += ended.cores
                done += 1
                task = ended.task
                if task.end():
                    outcome = summary(task.result())
                else:
                    failures.append(failure_of(task, ended.process.returncode))
                    outcome = f"FAILED, exit {failures[-1].exit_code}: {failures[-1].sentence} (log {task.log})"
                say(f"[{done}/{total}] {task.name}: {outcome}, {time.monotonic() - ended.began:.0f} s")
    finally:
        for left in running:  # interrupted: each checkpoints at the end of its epoch
            left.process.terminate()
        for left in running:
            left.process.wait()
    return failures


def may_join(task: Task, running: Sequence[Task], *, in_turn: bool) -> bool:
    """Whether it may run beside these."""
    if task.alone or any(other.alone for other in running):
        return not running
    return not in_turn or all(task.turn == other.turn for other in running)


def start(task: Task, cores: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a run bound to these cores; what it says goes to its log."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # children inherit it
    try:
        with task.log.open("wb") as log:
            return subprocess.Popen(
                task.command(),
                cwd=ROOT,
                env={**os.environ, **ONE_THREAD},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    finally:
        os.sched_setaffinity(0, ours)


def failure_of(task: Task, exit_code: int) -> Failure:
    if exit_code == DONE:
        return Failure(task, exit_code, "it ended well, but its records are not those of these settings")
    said = task.log.read_text(encoding="utf-8", errors="replace") if task.log.exists() else ""
    return Failure(task, exit_code, last_line(said))


def summary(run: Run) -> str:
    last = run.records[-1]
    scores = [
        f"{name} {100 * v:.2f} %"
        for name, v in (("training", last.train_accuracy), ("test", last.test_accuracy))
        if v is not None
    ]
    return ", ".join([f"{len(run.records)} epochs", *scores])


def results_of(experiment: Experiment, tasks: Sequence[Task]) -> Results:
    """The finished runs; a seed whose copies are not all finished has none."""
    runs: dict[str, dict[int, list[Run]]] = {}
    for task in tasks:
        if task.finished():
            runs.setdefault(task.row.key, {}).setdefault(task.seed, []).append(task.result())
    whole: Mapping[str, Mapping[int, list[Run]]] = {
        key: {seed: copies for seed, copies in by_seed.items() if len(copies) == experiment.row(key).copies}
        for key, by_seed in runs.items()
    }
    return Results(experiment, whole)
