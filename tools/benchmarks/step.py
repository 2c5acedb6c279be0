"""Seconds of one training step on two cores: hpcsplit's parallel epoch beside what a user would otherwise take.

    tools/bench step [--networks resnet56,resnet110,wrn-16-4] [--rounds 5] [--steps 6]

Images are random and lie in memory.  A turn of hpcsplit is a whole epoch of `--steps` steps, with the reading and
writing of rows, messages, and the first and last steps that nothing overlaps.  With delayed gradients it is an epoch in
the middle of a run (`method.epoch_end = "run"`): what is in flight goes on in the next turn.  x one: steps of one core
in the time of one step.  Limit: two independent copies on two cores at once.  Bound: the limit times the cut's balance
over 2, and for exact gradients in M micro-batches times the pipeline's M/(M+1).
"""

from __future__ import annotations

from tools.timing.race import COPIES, DDP, ONE, PARALLEL, TWO_THREADS, command_line, delayed, exact, run, torch_pipeline

NETWORKS = "resnet56,resnet110,wrn-16-4"
WAYS = (
    ONE,
    COPIES,
    TWO_THREADS,
    DDP,
    torch_pipeline("GPipe", 4),
    torch_pipeline("1F1B", 4),
    exact(4),
    PARALLEL,
    delayed(),
    delayed(", step", timetable="step"),
    delayed(", stale", weights="stale"),
    delayed(", replay", weights="replay"),
)


def main() -> int:
    run("step", command_line(__doc__, NETWORKS, steps=6).parse_args(), WAYS)
    return 0
