"""Runs what is not finished yet, on the cores of this machine or in Slurm arrays; a run that fails stops no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from hpcsplit.config import Config, load
from hpcsplit.config.option import show
from hpcsplit.errors import DONE, HpcsplitError
from hpcsplit.host.launchers import mpirun
from hpcsplit.host.printable import spans
from hpcsplit.run.folder import RunDir
from hpcsplit.run.provenance import starts
from hpcsplit.run.records import Records
from tools.experiments.declaring import Experiment, Row, ScaleName, Settings
from tools.experiments.measuring import Results, Run
from tools.program import ROOT, last_line

POLL_S = 0.2
ALONE = "alone"  # a file in the folder of a run beside which nothing else ran
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HPCSPLIT_PROGRESS": "plain", "PYTHONUNBUFFERED": "1"}
COPIES = "tools.experiments.copies"
TASK = "SLURM_ARRAY_TASK_ID"


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
        return self.folder.with_name(f"{self.name}.log")  # a name may have a point

    @property
    def cores(self) -> int:
        return self.row.stages if self.measured else 1

    @property
    def turn(self) -> tuple[str, int]:
        """Tasks of one turn run at once where timings are taken one after another."""
        return self.row.key, self.seed

    def resolved(self) -> Config:
        return _load(self.config, self.settings)

    def words(self) -> list[str]:
        """Of the command line, behind the program."""
        words = [word for key, value in self.settings.items() for word in (f"--{key}", show(value))]
        return [str(self.config), *words, "--run-dir", str(self.folder)]

    def command(self) -> list[str]:
        launcher = [mpirun(), "-n", str(self.row.stages)] if self.measured and self.row.stages > 1 else []
        return [*launcher, sys.executable, "-m", *self.row.program.split(), *self.words()]

    def finished(self) -> bool:
        """Whether all epochs of a run with these settings are there."""
        run = RunDir(self.folder)
        try:
            found, wanted = load(run.config), self.resolved()
            same = wanted.fingerprint() == found.fingerprint() and wanted.run.runner == found.run.runner
            marked = not self.alone or (self.folder / ALONE).exists()
            return same and marked and len(Records(run.records).load()) == wanted.schedule.epochs
        except HpcsplitError:
            return False

    def end(self) -> bool:
        """After its start has ended: note that it was alone, drop rows that its checkpoint needs no more; finished?"""
        if self.alone and self.folder.is_dir():
            (self.folder / ALONE).touch()
        finished = self.finished()
        if finished:
            shutil.rmtree(self.folder / "aux", ignore_errors=True)
        return finished

    def result(self) -> Run:
        """The finished run."""
        run = RunDir(self.folder)
        return Run(Records(run.records).load(), load(run.config).run.runner == "lockstep", starts(run.provenance)[-1])


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


def _load(config: Path, settings: Settings) -> Config:
    return load(config, [(key, show(value)) for key, value in settings.items()])


def tasks_of(
    experiment: Experiment, scale: ScaleName, *, rows: Sequence[Row], seeds: int, extra: Settings, out: Path, cores: int
) -> list[Task]:
    """All runs, those that are to be alone first, seed by seed.  A row with more stages than cores runs in turn on one
    core, to the same weights, and so does a seed whose times do not count; where timings are the point it is left out,
    as are copies for which there are too few cores."""
    tasks, file, chosen = [], ROOT / experiment.file, experiment.scale(scale)
    for seed in range(seeds):
        for row in rows:
            measured = row.stages <= cores and (experiment.times(seed) or row.stages == 1 or row.real)
            if ((experiment.in_turn or row.real) and not measured) or row.copies > cores:
                continue
            stages = str(row.stages)
            cuts = {"split.cuts": chosen.cuts[stages]} if stages in chosen.cuts else {}
            settings = {**experiment.base, **row.settings, **chosen.settings, **cuts, **extra}
            settings |= {"run.seed": seed, "run.threads": 1, "run.baseline": False, "checkpoint.keep": 1}
            settings |= {} if measured else {"run.runner": "lockstep", "run.stages": row.stages}
            if row.share != 1.0:
                settings["schedule.epochs"] = max(1, round(row.share * _load(file, settings).schedule.epochs))
            for copy in range(row.copies):
                name = f"{row.key}-{seed}" + (f"-copy{copy}" if row.copies > 1 else "")
                alone = measured and seed < experiment.timed
                tasks.append(Task(row, seed, file, settings, out / name, measured, alone))
    return sorted(tasks, key=lambda task: not task.alone)


def results_of(experiment: Experiment, tasks: Sequence[Task]) -> Results:
    """The finished runs; a seed whose copies are not all finished has none."""
    runs: dict[str, dict[int, list[Run]]] = {}
    for turn in turns_of(tasks):
        if all(task.finished() for task in turn):
            runs.setdefault(turn[0].row.key, {})[turn[0].seed] = [task.result() for task in turn]
    return Results(experiment, runs)


# ------------------------------------------------------------------------------------------------ on this machine


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
    ours, env = os.sched_getaffinity(0), {**os.environ, **ONE_THREAD}
    os.sched_setaffinity(0, cores)  # children inherit it
    try:
        with task.log.open("wb") as log:
            return subprocess.Popen(
                task.command(), cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
    finally:
        os.sched_setaffinity(0, ours)


def failure_of(task: Task, exit_code: int) -> Failure:
    if exit_code == DONE:
        return Failure(task, exit_code, "it ended well, but its records are not those of these settings")
    return Failure(task, exit_code, last_line(task.log.read_text("utf-8", "replace") if task.log.exists() else ""))


def summary(run: Run) -> str:
    last = run.records[-1]
    scores = (("training", last.train_accuracy), ("test", last.test_accuracy))
    return ", ".join([f"{len(run.records)} epochs", *(f"{n} {100 * v:.2f} %" for n, v in scores if v is not None)])


# ------------------------------------------------------------------------------------------------ in Slurm arrays


def ranks_of(experiment: Experiment) -> int:
    """The ranks of the largest row: on a cluster every row has its own."""
    return max(max(row.stages, row.copies) for row in experiment.rows)


def turns_of(tasks: Sequence[Task]) -> list[list[Task]]:
    """The runs of each turn, a row with a seed, in order; its copies run at once.  It is one task of an array."""
    return [list(turn) for _, turn in groupby(tasks, lambda task: task.turn)]


def arrays(turns: Sequence[Sequence[Task]], *, in_turn: bool) -> list[str]:
    """Options of sbatch for the turns that are not finished: an array for each number of ranks, whose tasks have a node
    to themselves where times are the point.  The index of a task is that of its turn."""
    found: dict[str, list[int]] = {}
    for index, turn in enumerate(turns):
        if not all(task.finished() for task in turn):
            exclusive = " --exclusive" if in_turn or turn[0].alone else ""
            found.setdefault(f"-n {sum(task.cores for task in turn)}{exclusive}", []).append(index)
    return [f"{options} --array={spans(indices)}" for options, indices in found.items()]


def words(turn: Sequence[Task]) -> list[str]:
    """The program of a turn and the words behind it; none if it is finished."""
    if all(task.finished() for task in turn):
        return []
    words = turn[0].words()
    if turn[0].row.copies == 1:
        return [turn[0].row.program, *words]
    return [COPIES, *words[:-1], words[-1].removesuffix("-copy0")]


def missing(turns: Sequence[Sequence[Task]]) -> list[Failure]:
    """The runs that the arrays have not finished, with the index of the task whose output says why."""
    said = "not finished, see the output of task {} of the array"
    return [Failure(t, None, said.format(n)) for n, turn in enumerate(turns) for t in turn if not t.finished()]
