"""Independent runs at once, one on each rank: what the machine can do at best (a row's `copies`).

    srun -n N python -m tools.reproductions.copies CONFIG [--section.key VALUE ...] --run-dir DIR

Rank r becomes `hpcsplit train` into DIR-copy<r>, without the variables by which MPI would find the other ranks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tools.program import LAUNCHERS

RANK = (
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "SLURM_PROCID",
)  # mpirun's before Slurm's, which has started it


def main(words: Sequence[str]) -> None:
    rank = next((os.environ[name] for name in RANK if name in os.environ), "0")
    alone = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    train = [sys.executable, "-m", "hpcsplit", "train", *words[:-1], f"{words[-1]}-copy{rank}"]
    os.execve(sys.executable, train, alone)


if __name__ == "__main__":
    main(sys.argv[1:])
