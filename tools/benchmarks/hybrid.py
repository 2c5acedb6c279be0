"""Seconds a step of the 1:4 hybrid on two cores: one exact epoch, the refresh of λ, four parallel epochs.

    tools/bench hybrid [--networks resnet56] [--rounds 5] [--steps 6]

The columns are those of `tools/bench step`; a turn of the hybrid is five epochs of `--steps` steps, with all that is in
them.  Printed with the refresh charged, and without.
"""

from __future__ import annotations

from tools.timing.race import CONTROLS, DDP, Way, ours, run


def hybrid(microbatches: int) -> Way:
    label, settings = f"hpcsplit, 1:4 hybrid, M = {microbatches}", {"schedule": {"microbatches": microbatches}}
    return ours(f"hybrid-{microbatches}", label, "hybrid", settings=settings)


def main() -> None:
    run(__doc__, "hybrid", (*CONTROLS, DDP, hybrid(4), hybrid(8)), networks="resnet56", steps=6)
