"""Losses of the tasks against torch's own distributions, and what a configuration may combine."""

from __future__ import annotations

import pkgutil
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from hpcsplit.config import resolve
from hpcsplit.errors import ConfigError
from hpcsplit.tasks.catalog import TASKS
from hpcsplit.tasks.generation import Generation
from hpcsplit.tasks.task import Classification


def test_every_name_has_its_task() -> None:
    kinds = {name: pkgutil.resolve_name(place) for name, place in TASKS.items()}
    assert kinds == {"classification": Classification, "generation": Generation}


def test_classification() -> None:
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 3, 2, 1, 1, 0])
    task = Classification()
    chosen = logits.log_softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(task.loss(logits, labels), -chosen)
    assert torch.equal(task.score(logits, labels), task.loss(logits, labels))
    assert task.correct(logits, labels).tolist() == [
        max(range(4), key=row.__getitem__) == label for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert task.pictures(logits, (1, 2, 2)) is None


def test_its_slope_is_bounded_by_the_constant() -> None:
    logits = (8 * torch.randn(500, 5, dtype=torch.float64)).requires_grad_()
    Classification().loss(logits, torch.arange(500) % 5).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.norm(dim=1).max()) < Classification.lipschitz
    assert float(logits.grad.norm(dim=1).max()) > 0.95 * Classification.lipschitz


def test_generation_is_reconstruction_and_divergence() -> None:
    n, latent, task = 12, 3, Generation()
    images, made = torch.randn(5, n, dtype=torch.float64), torch.randn(5, n, dtype=torch.float64)
    mean, log_variance = torch.randn(2, 5, latent, dtype=torch.float64)
    outputs = torch.cat([made, mean, log_variance], dim=1)
    square = torch.stack([F.mse_loss(a, b) for a, b in zip(made, images, strict=True)])
    posterior = Normal(mean, (0.5 * log_variance).exp())
    divergence = kl_divergence(posterior, Normal(torch.zeros_like(mean), torch.ones_like(mean))).sum(1)
    torch.testing.assert_close(task.loss(outputs, images), square + divergence / n)
    torch.testing.assert_close(task.score(outputs, images), square)
    assert task.correct(outputs, images) is None
    assert torch.equal(task.pictures(outputs, (3, 2, 2)), made.view(5, 3, 2, 2))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"name": "resnet20-vae"}, r"resnet20-vae is made for generation; set model\.task = "),
        ({"name": "resnet20", "task": "generation"}, r"resnet20 is made for classification; .* such as resnet20-vae"),
        ({"name": "resnet21-vae", "task": "generation"}, r"6n\+2 layers"),
        ({"name": "resnet20", "task": "segmentation"}, r"is not one of classification, generation"),
    ],
)
def test_networks_and_tasks_that_do_not_fit(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        resolve({"model": model})
