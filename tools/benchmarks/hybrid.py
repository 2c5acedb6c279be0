"""Seconds a step of the 1:4 hybrid on two cores: one exact epoch, the refresh of λ, four parallel epochs.

    tools/bench hybrid [--networks resnet56] [--rounds 5] [--steps 6]

The columns are those of `tools/bench step`; a turn of the hybrid is five epochs of `--steps` steps, with all that is in
them.  Printed with the refresh charged, and without.
"""

from __future__ import annotations

from dataclasses import replace

from tools.timing.race import CONTROLS, DDP, Way, ours, run
from tools.timing.turns import Contender

MICROBATCHES = (4, 8)


def hybrid(microbatches: int) -> Way:
    label, settings = f"hpcsplit, 1:4 hybrid, M = {microbatches}", {"schedule": {"microbatches": microbatches}}
    return ours(f"hybrid-{microbatches}", label, "hybrid", settings=settings)


def charged_or_not(contender: Contender) -> list[Contender]:
    """The hybrid as two rows."""
    if contender.failure or "refresh_s" not in contender.notes[0][0]:
        return [contender]
    spared = [[note | {"seconds": note["seconds"] - note["refresh_s"]} for note in notes] for notes in contender.notes]
    charged = replace(contender, label=", refresh charged")
    return [charged, replace(contender, label=", refresh not charged", notes=spared)]


def main() -> None:
    ways = (*CONTROLS, DDP, *map(hybrid, MICROBATCHES))
    run(__doc__, "hybrid", ways, charged_or_not, networks="resnet56", steps=6)
