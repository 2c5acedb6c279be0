"""A script for mpirun, several runs in one start: python -m tests.whole.several CONFIG.toml RUN_DIR [CONFIG.toml …]."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch

from hpcsplit.assemble import Around, make_jobs
from hpcsplit.commands.train import _prepare_together
from hpcsplit.config import load
from hpcsplit.engine.rank import rank_program
from hpcsplit.plan.setting import Setting
from hpcsplit.report.console import Console
from hpcsplit.report.watch import Watch
from hpcsplit.run.folder import RunDir
from hpcsplit.run.records import Records
from hpcsplit.wire.mpi import Wire


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    wire, cpu = Wire(), torch.device("cpu")
    rank = wire.rank
    for toml, folder in zip(words[::2], words[1::2], strict=True):
        setting, run_dir = Setting(load(toml)), RunDir(Path(folder))
        prepared = _prepare_together(setting, run_dir, wire, cpu)
        watch = Watch(Console(9, stream=io.StringIO()), Records(run_dir.records), setting.phases)
        (job,) = make_jobs(setting, prepared, run_dir, [rank], cpu, Around(watch, between_blocks=wire.progress))
        wire.run([rank_program(job)])
        if job.store:
            job.store.close()
    wire.close()


if __name__ == "__main__":
    main(sys.argv[1:])
