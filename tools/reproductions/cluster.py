"""Rows x seeds as tasks of Slurm arrays, for jobs/experiment.sbatch.  A turn, a row with a seed, is a task."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hpcsplit.host.printable import spans
from tools.reproductions.declaring import Experiment
from tools.reproductions.running import Failure, Task

COPIES = "tools.reproductions.copies"
TASK = "SLURM_ARRAY_TASK_ID"


def ranks_of(experiment: Experiment) -> int:
    """The ranks of the largest row: on a cluster every row has its own."""
    return max(max(row.stages, row.copies) for row in experiment.rows)


def turns_of(tasks: Sequence[Task]) -> list[list[Task]]:
    """The runs of each turn, in order; its copies run at once."""
    turns: dict[tuple[str, int], list[Task]] = {}
    for task in tasks:
        turns.setdefault(task.turn, []).append(task)
    return list(turns.values())


def arrays(turns: Sequence[Sequence[Task]], *, in_turn: bool) -> list[str]:
    """Options of sbatch for the turns that are not finished: an array for each number of ranks, whose tasks have a node
    to themselves where times are the point.  The index of a task is that of its turn."""
    found: dict[str, list[int]] = {}
    for index, turn in enumerate(turns):
        if not all(task.finished() for task in turn):
            exclusive = " --exclusive" if in_turn or turn[0].alone else ""
            found.setdefault(f"-n {sum(task.cores for task in turn)}{exclusive}", []).append(index)
    return [f"{options} --array={spans(indices)}" for options, indices in found.items()]


def own(turns: Sequence[list[Task]]) -> list[Task]:
    """The turn of the array task that this process is in.

    Raises:
        ValueError: its index is that of no turn.
    """
    text = os.environ.get(TASK, "")
    if not text.isdigit() or int(text) >= len(turns):
        raise ValueError(f"{TASK} = {text or 'unset'}: the tasks are 0 to {len(turns) - 1}; see jobs/experiment.sbatch")
    return turns[int(text)]


def words(turn: Sequence[Task]) -> list[str]:
    """The program of a turn and the words behind it; none if it is finished."""
    if all(task.finished() for task in turn):
        return []
    first = turn[0]
    if first.row.copies == 1:
        return [first.row.program, *first.words()]
    *most, folder = first.words()
    return [COPIES, *most, folder.removesuffix("-copy0")]


def missing(turns: Sequence[Sequence[Task]]) -> list[Failure]:
    """The runs that the arrays have not finished, with the index of the task whose output says why."""
    return [
        Failure(task, None, f"not finished, see the output of task {index} of the array")
        for index, turn in enumerate(turns)
        for task in turn
        if not task.finished()
    ]
