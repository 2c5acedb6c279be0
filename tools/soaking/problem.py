"""The run that is soaked: digits on two ranks, serial and parallel epochs, checkpoints within epochs too."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from hpcsplit.run.records import Records
from tools.program import launch

RANKS = 2
_TOML = """
[data]
name = "digits"
pool = true
limit_train = 160
limit_test = 64
batch_size = 32
eval_train = 64

[model]
name = "resnet8"

[split]
cuts = [2]

[method]
name = "penalty"

[schedule]
epochs = {epochs}
ratio = "1:3"

[optim]
lr = 0.05
clip = 1.0

[checkpoint]
aux = "{aux}"
every_minutes = 0.05

[run]
threads = 1
device = "cpu"
baseline = false
stall_limit = 1.0
"""


@dataclass(frozen=True)
class Place:
    """One run: its configuration and everything that it may write, in one folder."""

    folder: Path

    @property
    def toml(self) -> Path:
        return self.folder / "soak.toml"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def said(self) -> Path:
        return self.folder / "said.txt"

    def make(self, aux: str, epochs: int) -> None:
        """A fresh folder; `aux` is checkpoint.aux, "keep" or "copy"."""
        self.temporary.mkdir(parents=True)
        self.toml.write_text(_TOML.format(aux=aux, epochs=epochs), encoding="utf-8")

    def epochs(self) -> int:
        """Lines in records.jsonl."""
        try:
            return (self.run / "records.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def weights(self) -> list[tuple[int, str | None]]:
        """(epoch, hash of the weights after it) in the order of the file."""
        return [(r.epoch, r.weights_sha256) for r in Records(self.run / "records.jsonl").load()]

    def start(self, mark: str) -> subprocess.Popen[bytes]:
        """Train or continue, in a session of its own; standard output and error are added to `said`."""
        words = ["-m", "hpcsplit", "train", str(self.toml), "--run-dir", str(self.run)]
        with self.said.open("ab") as said:
            return launch(words, RANKS, mark, said, said, {"TMPDIR": str(self.temporary)})
