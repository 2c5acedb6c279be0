"""Seconds of one exact step on two cores: hpcsplit's pipeline in M micro-batches beside torch's and data parallelism.

    tools/bench serial [--networks resnet32,resnet56] [--rounds 10] [--steps 4]

The columns are those of `tools/bench step`.  "whole": weight gradients do not wait (`schedule.deferred = false`); "zb":
with twice as many micro-batches in flight.  ZB-H1 and ZBV are the zero-bubble pipelines of torch, with one stage a rank
and with two.  "one core, M" cuts the mini-batch into the same pieces without a pipeline, so it shows what small pieces
cost by themselves.  "recompute" runs each micro-batch's forward pass again before its backward pass and keeps no
activations in between.  Rows that are compared with each other have taken turns with each other.
"""

from __future__ import annotations

from tools.timing.race import (
    CONTROLS,
    DDP,
    Way,
    exact,
    one_core_in_pieces,
    run,
    torch_pipeline,
    torchbraid,
    torchgpipe,
)

MICROBATCHES = (1, 2, 4, 8)
DEFERRED = {"deferred": True}


def pipelines(microbatches: int) -> list[Way]:
    """torch's and ours in so many micro-batches."""
    theirs = [torch_pipeline(order, microbatches) for order in ("1F1B", "ZB-H1", "ZBV") if microbatches > 1]
    whole = exact(microbatches, ", whole", schedule={"deferred": False})
    rivals = (*(way.name for way in theirs), whole.name)
    ours = exact(microbatches, rivals=rivals, schedule=DEFERRED)
    more = exact(microbatches, ", zb", (*rivals, ours.name), schedule={"pipeline": "zb", **DEFERRED})
    return [*theirs, whole, ours, *([more] if microbatches > 2 else [])]


WAYS = (
    *CONTROLS,
    *(way for m in MICROBATCHES for way in pipelines(m)),
    DDP,
    *(torchgpipe(m) for m in MICROBATCHES[1:]),
    torchbraid("serial"),
    torchbraid("mgrit"),
    *(one_core_in_pieces(m) for m in MICROBATCHES[1:]),
    exact(8, ", gpipe", schedule={"pipeline": "gpipe"}),
    exact(8, ", recompute", schedule={"recompute": True}),
)


def main() -> None:
    run(__doc__, "serial", WAYS, networks="resnet32,resnet56", steps=4, rounds=10)
