"""What an epoch of a method sends, counted by replaying a short one on a machine where nothing takes time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hpcsplit.methods.backprop import Backprop
from hpcsplit.methods.contract import TrainingMethod, visits
from hpcsplit.plan.blocks import BlockTime
from hpcsplit.plan.profile import CutCost, Profile
from hpcsplit.plan.simulate.dry import Problem
from hpcsplit.plan.simulate.machine import Machine
from hpcsplit.plan.simulate.study import replay
from hpcsplit.schedule.actions import Train
from hpcsplit.stage.stage import Shape


def epoch_bytes(
    method: TrainingMethod,
    shapes: Sequence[Shape],
    cuts: Sequence[int],
    batch_sizes: Sequence[int],
    *,
    dtype: torch.dtype,
    aux_dtype: torch.dtype,
) -> list[tuple[int, int]]:
    """(to the stage before, to the next one) in bytes for each stage, in an epoch of the method.

    An epoch of the fewest samples that make a mini-batch is replayed, and counts for each sample of the whole one: a
    message has a row for each, and all are visited alike.

    Args:
        shapes: of one sample at the input of each block and at the output of the last one.
        batch_sizes: samples of each mini-batch.
        dtype: of activations and gradients that exact back-propagation sends.
        aux_dtype: of the rows of variables.
    """
    blocks, few = len(shapes) - 1, method.microbatches
    free = (BlockTime(0.0, 0.0),) * blocks
    profile = Profile(free, free, 1, (CutCost(),) * blocks, (0,) * blocks, 0.0, 0.0)
    problem = Problem(method, Backprop(), shapes, profile, few, dtype, aux_dtype)
    traffic = replay(problem, cuts, Machine(), [Train(0, "parallel", 0)], "parallel", 1).traffic
    all_visits, replayed = _visits(method, batch_sizes), _visits(method, [few])
    return [(t.sent_bytes_prev * all_visits // replayed, t.sent_bytes_next * all_visits // replayed) for t in traffic]


def _visits(method: TrainingMethod, batch_sizes: Sequence[int]) -> int:
    """Samples that pass in an epoch of such mini-batches, each as often as it is visited."""
    return sum(map(len, visits(method, [np.arange(size) for size in batch_sizes])))
