"""Gradients of several mini-batches that make one update (optim.accumulate).

Each is a mean over a mini-batch; the update has the mean over all their samples, as a mini-batch so much larger would
give it, BatchNorm apart.  What waits is in the stage's carry, block by block, so checkpoints save it and other cuts
take it up.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hpcsplit.stage.carry import Carry

_COUNT, _SAMPLES = "gathered", "gathered_samples"


def gather(
    carry: Carry, by_block: Mapping[int, Mapping[str, nn.Parameter]], samples: int, most: int, *, ends: bool
) -> bool:
    """Add the gradients at hand, of a mini-batch of so many samples, to those that wait.  Whether they wait for more:
    for `most` mini-batches, or for the last one of an epoch, which `ends` it.  Else they become the mean of all."""
    wait = False
    for number, weights in by_block.items():
        kept = carry.block(number)
        count = int(kept.pop(_COUNT, torch.zeros(()))) + 1
        total = int(kept.pop(_SAMPLES, torch.zeros(()))) + samples
        wait = count < most and not ends
        if wait:
            kept[_COUNT], kept[_SAMPLES] = torch.tensor(count), torch.tensor(total)
        elif count == 1:
            continue
        sums = kept.below(f"{_COUNT}/")
        for name, p in weights.items():
            before, mine = sums.pop(name, None), None if p.grad is None else samples * p.grad
            if before is not None:
                before = torch.empty_like(p).copy_(before)  # in the format of p, also after a resume
                mine = before if mine is None else before.add_(mine)
            if wait and mine is not None:
                sums[name] = mine
            elif mine is not None:
                p.grad = mine.div_(total)
    return wait
