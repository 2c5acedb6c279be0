"""run.seed decides the first weights and every random layer, in every epoch and step anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hpcsplit.engine.job import Job
from tests.checkpoint.starts import Course
from tests.engine.small import CUTS, config, make_jobs
from tests.engine.tinynet import small


@pytest.mark.parametrize("seed", [1, 20])
def test_the_first_weights_are_those_of_the_seed(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    expected = small((3, 32, 32), 10).state_dict()
    jobs = make_jobs(config(2, run__seed=seed, store__kind="memory"), 2, tmp_path)
    found = {name: t for job in jobs for name, t in job.stage.state().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_runs_of_different_seeds_differ_and_those_of_one_do_not(tmp_path: Path) -> None:
    """Also with one mini-batch and without augmentation, where the order of the samples makes no difference."""
    changes = {"schedule__epochs": 1, "data__batch_size": 0, "data__augment": False, "store__kind": "memory"}
    losses = []
    for number, seed in enumerate((0, 3, 3)):
        course = Course(tmp_path / str(number), run__seed=seed, **changes)
        assert course.start(CUTS[1])
        losses.append(course.records[0].loss)
    assert losses[1] == losses[2]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def masks(folder: Path, seed: int) -> dict[tuple[int, ...], bytes]:
    """What the random layer of a run has drawn in each epoch, step and pass."""
    drawn: dict[tuple[int, ...], bytes] = {}

    def listen(jobs: list[Job]) -> None:
        stage = jobs[-1].stage
        body: Any = dict(stage.blocks.named_children())["body4"]
        noisy = body[-1]

        def forward(x: torch.Tensor) -> torch.Tensor:
            mask = F.dropout(torch.ones_like(x[:8]), 0.3, noisy.training)  # not smaller in the last mini-batch
            if noisy.training:
                drawn[(*stage.position, stage.passes)] = mask.numpy().tobytes()
            return torch.cat((x[:8] * mask, x[8:]))

        noisy.forward = forward

    course = Course(
        folder,
        model__name="tests.engine.tinynet:noisy",
        run__seed=seed,
        schedule__epochs=4,
        schedule__ratio="1:1",  # S P S P
        store__kind="memory",
    )
    assert course.start(CUTS[2], prepare=listen)
    return drawn


def test_a_random_layer_draws_anew_in_every_epoch_step_and_pass(tmp_path: Path) -> None:
    once, again, other = (masks(tmp_path / str(n), seed) for n, seed in enumerate((5, 5, 6)))
    assert {(epoch, step) for epoch, step, _ in once} == {(epoch, step) for epoch in range(4) for step in range(4)}
    assert len(set(once.values())) == len(once)
    assert once == again
    assert not set(once.values()) & set(other.values())
