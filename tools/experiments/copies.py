"""Independent runs at once, one on each rank: what the machine can do at best (a row's `copies`).

    srun -n N python -m tools.experiments.copies CONFIG [--section.key VALUE ...] --run-dir DIR

Rank r becomes `hpcsplit train` into DIR-copy<r>, without the variables by which MPI would find the other ranks.
"""

from __future__ import annotations

import os
import sys

from hpcsplit.host.launchers import alone, launcher_rank


def main(words: list[str]) -> None:
    train = [sys.executable, "-m", "hpcsplit", "train", *words[:-1], f"{words[-1]}-copy{launcher_rank()}"]
    os.execve(sys.executable, train, alone())


if __name__ == "__main__":
    main(sys.argv[1:])
