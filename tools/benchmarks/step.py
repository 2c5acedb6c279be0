"""Seconds of one training step on two cores: hpcsplit's parallel epoch beside what a user would otherwise take.

    tools/bench step [--networks resnet56,resnet110,wrn-16-4] [--rounds 5] [--steps 6]
    tools/bench step --networks tools.timing.networks:blank110 --batch 2 --steps 20

Images are random and lie in memory.  A turn of hpcsplit is a whole epoch of `--steps` steps, with the reading and
writing of rows, messages, and the first and last steps that nothing overlaps.  With delayed gradients it is an epoch in
the middle of a run (`method.epoch_end = "run"`): what is in flight goes on in the next turn, but all ranks
meet between turns, so that the last stage waits for a forward pass in each.  BatchNorm: the samples
that it normalises over.  x one: steps of one core in the time of one step.  Of copies: steps in the time of one, over
what two independent processes make of the two cores.  Bound: the same over what the cut's balance and, for exact
gradients in M micro-batches, 1F1B's bubble leave of that.  +CPU: CPU time a step of all processes together over that of
one core.  Every ratio and difference is the median over rounds, each of one round.

The second line trains a network of many layers that hardly compute: it shows what a step costs beside its arithmetic.
"""

from __future__ import annotations

from tools.timing.race import (
    CONTROLS,
    DDP,
    FSDP,
    PARALLEL,
    TWO_THREADS,
    delayed,
    exact,
    one_core_in_pieces,
    run,
    torch_pipeline,
)

NETWORKS = "resnet56,resnet110,wrn-16-4"
WAYS = (
    *CONTROLS,
    TWO_THREADS,
    DDP,
    FSDP,
    torch_pipeline("ZB-H1", 4),
    torch_pipeline("ZBV", 4),
    one_core_in_pieces(1),
    exact(4),
    PARALLEL,
    delayed(", whole", whole=True),
    delayed(rivals=("delayed-whole",)),
    delayed(", step", timetable="step"),
    delayed(", stale", weights="stale"),
    delayed(", replay", weights="replay"),
)


def main() -> None:
    run(__doc__, "step", WAYS, networks=NETWORKS, steps=6)
