"""Seconds of one exact step on two cores: hpcsplit's pipeline in M micro-batches beside torch's and data parallelism.

    tools/bench serial [--networks resnet56] [--rounds 5] [--steps 4]

The columns are those of `tools/bench step`.  "one core, M" cuts the mini-batch into the same pieces without a pipeline,
so it shows what small pieces cost by themselves.  "recompute" runs each micro-batch's forward pass again before its
backward pass and keeps no activations in between.
"""

from __future__ import annotations

from tools.timing.race import COPIES, DDP, ONE, command_line, exact, one_core_in_pieces, run, torch_pipeline

MICROBATCHES = (2, 4, 8)
WAYS = (
    ONE,
    COPIES,
    *(one_core_in_pieces(m) for m in MICROBATCHES),
    DDP,
    *(torch_pipeline("1F1B", m) for m in MICROBATCHES),
    *(exact(m) for m in MICROBATCHES),
    exact(8, ", gpipe", schedule={"pipeline": "gpipe"}),
    exact(8, ", recompute", schedule={"recompute": True}),
)


def main() -> int:
    run("serial", command_line(__doc__, "resnet56", steps=4).parse_args(), WAYS)
    return 0
